"""Rank 0's side: starts the other ranks, tells them what to do, and notices when one is gone."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from threading import Event, Lock, Thread
from typing import Any

import torch

from manylora.server.errors import ConfigError
from manylora.server.kernels.inputs import StepInputs
from manylora.server.model.parallel.channel import Channel
from manylora.server.model.parallel.messages import Encoder
from manylora.server.model.parallel.setup import RankSetup

logger = logging.getLogger(__name__)

FOLLOWER = "manylora.server.model.parallel.follower"
_GRACE = 10.0  # seconds in which a rank that was told to ends


class RanksLost(Exception):
    """A rank is gone, or out of step: no further step can run."""


class Leader:
    """The other ranks, as rank 0 has them. Steps come from one thread, everything else from any."""

    def __init__(self, setups: Sequence[RankSetup], program: str = FOLLOWER) -> None:
        """Start a process for each setup, which runs the module ``program``; see :meth:`join`."""
        self._program = program
        self._steps: list[Channel] = []  # to each rank: steps and what has to be in their order
        self._loads: list[Channel] = []  # to each rank: adapters and merged copies, beside the steps
        self._processes: list[subprocess.Popen[bytes]] = []
        self._encoder = Encoder()
        self._loading = Lock()
        self._told = 0  # messages of steps
        self._numbers = itertools.count(1)  # of merged copies
        self._freed: deque[int] = deque()
        self._closing = False
        self._ended = Event()
        self.reason: str | None = None  # why no step can run any more
        for setup in setups:
            self._start(setup)

    def _start(self, setup: RankSetup) -> None:
        (steps, their_steps), (loads, their_loads) = Channel.pair(), Channel.pair()
        with their_steps, their_loads:
            ends = [their_steps.fileno(), their_loads.fileno()]
            process = subprocess.Popen(
                [sys.executable, "-m", self._program, *map(str, ends)],
                pass_fds=ends,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for rank 0, which ends the others
            )
        self._steps.append(steps)
        self._loads.append(loads)
        self._processes.append(process)
        Thread(target=self._watch, args=(setup.rank, process), name=f"rank {setup.rank}", daemon=True).start()
        steps.send(setup)

    def join(self) -> None:
        """Have the ranks meet, once all have their parts of the model; this one has to as well then.

        Raises:
            ConfigError: one can't load its part; says why.
        """
        for channel in self._steps:
            self._answer(channel)
        self._tell("join")

    def joined(self, kernels: str) -> int:
        """Wait until all ranks have their decoders; the bytes that are free on the one with the fewest.

        Raises:
            ConfigError: one has none, says why; or not on ``kernels``, whose steps others can't follow.
        """
        answers = [self._answer(channel) for channel in self._steps]
        other = next((answer.kernels for answer in answers if answer.kernels != kernels), None)
        if other is not None:
            raise ConfigError(
                f"one rank runs on {kernels} kernels, another on {other}: take --kernels pytorch"
            )
        free: list[int] = [answer.free for answer in answers]
        return min(free)

    def allocate(self, pool: torch.Tensor, num_blocks: int, max_rows: int) -> None:
        """Have each rank take memory: for as many elements of adapters as ``pool`` has, and for blocks.

        Raises:
            ConfigError: one can't; says why.
        """
        self._tell("allocate", pool.numel(), num_blocks, max_rows)
        for channel in self._steps:
            self._answer(channel)

    def begin(self, inputs: StepInputs, merged: int | None) -> None:
        """Tell the ranks of a step that this one is about to run, on the merged copy of that number."""
        self._told += 1
        self._tell("step", self._encoder.encode(inputs, merged), self._no_more())

    def capturing(self, what: str) -> None:
        """Have the ranks do with their captured steps what this one does: "restart" or "seal"."""
        self._told += 1
        self._tell("capturing", what)

    def write(self, start: int, parts: Sequence[torch.Tensor]) -> None:
        """Put each other rank's part of an adapter into its pool, behind the steps that were told until now.

        It is there when this returns.
        """
        with self._loading:
            after = self._told
            for channel, part in zip(self._loads, parts, strict=True):
                self._load(channel, ("write", after, start), [part])
            self._acknowledged()

    def put(
        self,
        number: int,
        modules: Sequence[int],
        weights: Sequence[Sequence[torch.Tensor]],
        biases: Sequence[Sequence[torch.Tensor | None]],
    ) -> None:
        """Give each other rank its part of some matrices of a merged copy."""
        with self._loading:
            freed = self._no_more()
            for channel, own, own_biases in zip(self._loads, weights, biases, strict=True):
                message = ("put", self._told, freed, number, tuple(modules))
                self._load(channel, message, [*own, *own_biases])
            self._acknowledged()

    def number(self, merged: object) -> int:
        """A number for a merged copy, which the ranks keep as long as the object ``merged`` is there."""
        number = next(self._numbers)
        weakref.finalize(merged, self._freed.append, number).atexit = False
        return number

    def _no_more(self) -> list[int]:
        return [self._freed.popleft() for _ in range(len(self._freed))]

    def fail(self, reason: str) -> RanksLost:
        """From now on no step can run; the error to raise."""
        if self.reason is None and not self._closing:
            self.reason = reason
            logger.critical("%s", reason)
        self._ended.set()
        return RanksLost(self.reason or reason)

    def until_lost(self) -> str | None:
        """Wait until no step can run any more; why, or None where the server ends by itself."""
        self._ended.wait()
        return self.reason

    @property
    def statuses(self) -> list[int | None]:
        """The exit statuses of the other ranks; None of those that run."""
        return [process.poll() for process in self._processes]

    def close(self, patience: float = _GRACE) -> None:
        """End the other ranks; those that have not ended after ``patience`` seconds are killed."""
        self._closing = True
        self._ended.set()
        for channel in (*self._steps, *self._loads):
            channel.close()
        for process in self._processes:
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        if not self._closing:
            self.fail(f"rank {rank} (process {process.pid}) has ended with status {status}")

    def _tell(self, *message: object) -> None:
        try:
            for channel in self._steps:
                channel.send(message)
        except OSError as error:
            raise self.fail(f"a rank can't be told what to do: {error}") from error

    def _load(self, channel: Channel, message: object, tensors: Sequence[torch.Tensor | None]) -> None:
        try:
            channel.send(message)
            channel.send_tensors(tensors)
        except OSError as error:
            raise self.fail(f"a rank can't be sent weights: {error}") from error

    def _acknowledged(self) -> None:
        for channel in self._loads:
            try:
                fault = channel.receive()
            except (OSError, EOFError) as error:
                raise self.fail(f"a rank has not taken what it was sent: {error}") from error
            if fault is not None:
                raise self.fail(f"a rank can't take what it was sent: {fault}")

    def _answer(self, channel: Channel) -> Any:
        try:
            answer = channel.receive()
        except (OSError, EOFError):
            raise ConfigError("--tensor-parallel-size: a rank has ended; its log says why") from None
        if isinstance(answer, str):
            raise ConfigError(answer)
        return answer
