"""The process of every rank but the first: does what rank 0 tells it, and ends with it.

It is started with two descriptors: of the channel of steps, and of that of adapters and merged copies. Those
are taken by a thread of its own, so that steps need not wait for them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from threading import Condition, Thread
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from manylora.server.errors import ServerError
from manylora.server.kernels.buffers import zeros
from manylora.server.kernels.weights import MergedWeights
from manylora.server.memory_budget import available_bytes, return_freed
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.loading.device import use_device
from manylora.server.model.pages.uploads import upload_for
from manylora.server.model.parallel.channel import Channel
from manylora.server.model.parallel.group import Group
from manylora.server.model.parallel.messages import Decoder
from manylora.server.model.parallel.parts.loading import Share, load_share
from manylora.server.model.parallel.setup import RankReady, RankSetup

logger = logging.getLogger(__name__)

_FAILED = 1  # exit status
_DONE = None  # answers that say no more


class Follower:
    """One rank, once it has its part of the model."""

    def __init__(self, setup: RankSetup, steps: Channel, loads: Channel) -> None:
        """Load the part and meet the other ranks."""
        self._setup = setup
        self._steps = steps
        self._loads = loads
        self._merged: dict[int, MergedWeights] = {}
        self._done = 0  # steps that were launched
        self._progress = Condition()
        use_device(setup.device)
        share = load_share(setup)
        steps.send(_DONE)
        self._follow_join(share)

    def _follow_join(self, share: Share) -> None:
        assert self._steps.receive() == ("join",)
        setup = self._setup
        self._share = share
        self._decoder = FusedDecoder(
            share.hf,
            share.max_model_len,
            setup.kernels,
            coded_cache=setup.coded_cache,
            ranks=Group(share.sharding, setup.device, setup.backend, setup.meeting),
        )
        self._messages = Decoder(self._decoder.weights.embedding)
        return_freed(setup.device)
        self._steps.send(RankReady(available_bytes(setup.device), self._decoder.kernels))

    def allocate(self) -> None:
        """Take the memory that rank 0 says."""
        what, elements, num_blocks, max_rows = self._steps.receive()
        assert what == "allocate"
        self._pool = zeros((elements,), self._setup.dtype, self._setup.device)
        self._upload = upload_for(self._setup.device)
        self._decoder.allocate(self._pool, num_blocks, max_rows)
        self._decoder.take_over(self._share.hf)
        return_freed(self._setup.device)
        self._steps.send(_DONE)
        Thread(target=self._take_loads, name="loads", daemon=True).start()

    def run(self) -> None:
        """Do what rank 0 tells until it ends."""
        while True:
            self._do(*self._steps.receive())
            with self._progress:
                self._done += 1
                self._progress.notify_all()

    def _do(self, what: str, *arguments: Any) -> None:
        if what == "step":
            message, freed = arguments
            self._forget(freed)
            merged = None if message.merged is None else self._copy(message.merged)
            self._decoder.run(self._messages.decode(message, merged))
            return
        assert what == "capturing"
        assert self._decoder.capturing is not None
        getattr(self._decoder.capturing, arguments[0])()

    # The thread of adapters and merged copies.

    def _take_loads(self) -> None:
        use_device(self._setup.device)
        try:
            while True:
                what, after, *arguments = self._loads.receive()
                tensors = self._loads.receive_tensors()
                with self._progress:
                    self._progress.wait_for(lambda after=after: self._done >= after)  # type: ignore[misc]
                self._loads.send(self._take(what, arguments, tensors))
        except (EOFError, OSError):  # rank 0 is gone; the other thread may wait for it within a step
            os._exit(0)

    def _take(self, what: str, arguments: list[Any], tensors: list[torch.Tensor | None]) -> str | None:
        """Take what rank 0 has sent; what went wrong, if something did."""
        try:
            if what == "write":
                (start,), (data,) = arguments, tensors
                assert data is not None
                self._upload.send(data, self._pool[start : start + len(data)])
            else:
                freed, number, modules = arguments
                self._forget(freed)
                self._put(number, modules, tensors)
        except Exception as error:  # rank 0 ends the server for it
            logger.exception("what rank 0 has sent can't be taken")
            return f"{type(error).__name__}: {error}"
        return None

    def _put(self, number: int, modules: tuple[int, ...], tensors: list[torch.Tensor | None]) -> None:
        merged, device = self._copy(number), self._setup.device
        here = [None if tensor is None else tensor.to(device) for tensor in tensors]
        weights = [tensor for tensor in here[: len(modules)] if tensor is not None]
        with torch.inference_mode():
            merged.put(modules, weights, here[len(modules) :])

    def _copy(self, number: int) -> MergedWeights:
        """The merged copy of that number; of one in which nothing differs nothing was sent."""
        if number not in self._merged:
            self._merged[number] = self._decoder.merged()
        return self._merged[number]

    def _forget(self, freed: list[int]) -> None:
        for number in freed:
            self._merged.pop(number, None)


def main() -> None:
    """Be a rank until rank 0 ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # rank 0 says when it is over; a service manager tells all
    steps, loads = (Channel(int(descriptor)) for descriptor in sys.argv[1:])
    try:
        setup = steps.receive()
        logging.basicConfig(
            level="WARNING", format=f"%(asctime)s %(levelname)s rank {setup.rank} %(name)s: %(message)s"
        )
        logging.getLogger("manylora").setLevel(setup.log_level)
        disable_progress_bar()
        torch.set_num_threads(setup.threads)
        try:
            follower = Follower(setup, steps, loads)
            follower.allocate()
        except (ServerError, torch.OutOfMemoryError, MemoryError) as error:
            steps.send(f"rank {setup.rank}: {error}")
            sys.exit(_FAILED)
        follower.run()
    except (EOFError, OSError):  # rank 0 is gone
        os._exit(0)
    except Exception:
        logger.critical("the rank ends", exc_info=True)
        os._exit(_FAILED)


if __name__ == "__main__":
    main()
