"""The engine behind an event loop: commands go in through a queue, events come out in one hop a step.

One thread owns the engine. The loop never touches a sequence's state except to request its abort;
the thread never touches the loop except through ``call_soon_threadsafe``. What steps draw becomes text on the
loop, while the next step runs.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from time import monotonic

from manylora.adapters.format.pooling import Pooling
from manylora.server.engine.answer_reader import Outcome
from manylora.server.engine.clients import EVERYBODY, Client
from manylora.server.engine.engine import Engine
from manylora.server.engine.faults import DeviceLost, Supervision, is_lost, show_threads
from manylora.server.engine.retry_after import RetryAfter
from manylora.server.engine.sequence import ResolvedMix, SamplingParams, Sequence
from manylora.server.engine.stream import Ended, Held, Stream
from manylora.server.errors import ContextTooLong, EngineDead, QueueFull, RequestError
from manylora.server.model.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt, to be answered ``n`` times."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    n: int = 1
    salt: bytes = b""
    request_id: str = ""
    tokenizer: Tokenizer | None = None  # that reads the answer and names its end; None: the base's
    given_ids: tuple[int, ...] = ()  # an answer's beginning, which is given
    logits_from: int | None = None  # deliver the logits after each given token, from this index on
    pooling: Pooling | None = None  # deliver what the hidden states of the prompt come to, and no logits
    client: Client = EVERYBODY  # whose turn it is when it runs
    priority: int | None = None  # among the client's own; the lower, the earlier. None: 0, if it may be


class AsyncEngine:
    """Runs an :class:`Engine` on its own thread."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_model_len: int,
        max_open: int,
        supervision: Supervision | None = None,
    ) -> None:
        """``max_open`` bounds the sequences running and waiting; a request for more can never be taken.

        ``supervision`` is of engines whose steps run on an accelerator.
        """
        self.max_model_len = max_model_len
        self._engine = engine
        self._turns = engine.scheduler.turns
        self.max_open = max_open
        self._commands: SimpleQueue[Sequence | None] = SimpleQueue()
        self._streams: dict[int, Stream] = {}
        self._ids = itertools.count(1)
        self._retry_after = RetryAfter()
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._supervision = Supervision() if supervision is None else supervision
        self._warmed: asyncio.Future[None] | None = None
        self._watchdog: asyncio.Task[None] | None = None
        self._step_began: float | None = None  # of the step that runs; set by the thread
        self._stopping = False
        self.died = asyncio.Event()  # set once the engine has ended by itself: the process has to as well

    @property
    def alive(self) -> bool:
        """Whether requests can be served."""
        return (
            self._thread is not None
            and self._thread.is_alive()
            and not (self._stopping or self.died.is_set())
        )

    @property
    def num_open(self) -> int:
        """Sequences submitted and not yet ended."""
        return len(self._streams)

    def answering(self) -> list[Held]:
        """What each sequence that is submitted and has not ended runs with."""
        return [stream.held for stream in self._streams.values()]

    def start(self) -> None:
        """Start the engine thread; call from the event loop's thread."""
        self._loop = asyncio.get_running_loop()
        self._warmed = self._loop.create_future()
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        if self._supervision.until_lost is not None:
            Thread(target=self._await_loss, args=(self._supervision.until_lost,), daemon=True).start()
        if self._supervision.step_timeout is not None:
            self._watchdog = self._loop.create_task(self._watch(self._supervision.step_timeout))

    async def warmed(self) -> None:
        """Wait until steps run as they will from now on.

        Raises:
            Exception: what came in between; the engine has ended.
        """
        assert self._warmed is not None, "start() comes first"
        await self._warmed

    async def stop(self) -> None:
        """Abort what runs, deliver the last events, and end the thread."""
        for stream in set(self._streams.values()):
            stream.abort()
        self._stopping = True
        self._commands.put(None)
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._thread is not None and not self.died.is_set():  # else it may hang for ever
            await asyncio.to_thread(self._thread.join)
            await asyncio.sleep(0)  # let the last call_soon_threadsafe run

    def submit(self, request: GenerateRequest, held: Held, ended: Ended | None = None) -> Stream:
        """Queue a request. ``held`` is taken over: released with the last event, or at once if this raises.

        ``ended`` is called once for each sequence, however it ends; it must not raise.

        Raises:
            ContextTooLong: prompt and ``max_tokens`` exceed the context.
            RequestError: a given token is unknown to the mix.
            QueueFull: too many sequences are running and waiting.
            EngineDead: the engine thread has ended.
        """
        try:
            self._check(request, held)
            sequences = self._sequences(request, held.mix)
        except BaseException:
            held.release()
            raise
        if not self._streams:
            self._retry_after.resumed(monotonic())
        if self._turns is not None:
            self._turns.submitted(request.client, len(request.prompt_ids) * request.n)
        stream = Stream(sequences, held, lambda: self._commands.put(None), ended)
        for sequence in sequences:
            self._streams[sequence.id] = stream
            self._commands.put(sequence)
        return stream

    def _check(self, request: GenerateRequest, held: Held) -> None:
        if not self.alive:
            raise EngineDead("the engine has stopped; restart the server")
        self._check_length(request, held.mix.num_virtual_tokens)
        if max(request.given_ids, default=0) >= max(self._engine.vocab_size, held.mix.vocab_size):
            raise RequestError(f"{held.served_model!r} does not know every token of the given text")
        if len(self._streams) + request.n > self.max_open:
            raise QueueFull(
                f"{len(self._streams)} sequences are running or waiting; try again later",
                self._retry_after.seconds,
            )

    def _check_length(self, request: GenerateRequest, virtual: int) -> None:
        prompt = len(request.prompt_ids)
        answer = len(request.given_ids) + request.params.max_tokens
        if virtual + prompt + answer > self.max_model_len:
            before = f"{virtual} before the prompt, " if virtual else ""
            raise ContextTooLong(
                f"this model's context is {self.max_model_len} tokens; the request asks for "
                f"{virtual + prompt + answer} ({before}{prompt} in the prompt, {answer} in the answer)",
                "max_tokens",
            )

    def _sequences(self, request: GenerateRequest, mix: ResolvedMix) -> list[Sequence]:
        made: list[Sequence] = []
        for index in range(request.n):
            made.append(
                Sequence(
                    next(self._ids),
                    request.prompt_ids,
                    request.params,
                    mix,
                    tokenizer=request.tokenizer,
                    index=index,
                    salt=request.salt,
                    leader=made[0] if made else None,
                    given_ids=request.given_ids,
                    logits_from=request.logits_from,
                    pooling=request.pooling,
                    client=request.client,
                    priority=0 if request.priority is None else request.priority,
                )
            )
        return made

    # The engine thread.

    def _run(self) -> None:
        try:
            self._warm_up()
            while not self._stopping or self._engine.has_work or not self._commands.empty():
                self._take_commands()
                if self.died.is_set():  # nobody listens any more
                    return
                if self._engine.has_work:
                    self._step_and_tell()
        except BaseException:  # a defect outside of a step: nothing can be trusted to go on
            logger.critical("the engine thread has ended", exc_info=True)
            self._stopping = True
            self._call(self._die)

    def _warm_up(self) -> None:
        """What has to be done on this thread before the first step."""
        try:
            if self._supervision.warm_up is not None:
                self._supervision.warm_up()
        except BaseException as error:
            self._call(self._told_warm, error)
            raise
        self._call(self._told_warm, None)

    def _await_loss(self, until_lost: Callable[[], str | None]) -> None:
        """On a thread of its own: a step may wait for ever for what is lost, and without steps none fails."""
        reason = until_lost()
        if reason is not None:
            logger.critical("no step can run any more: %s", reason)
            self._call(self._die)

    def _take_commands(self) -> None:
        """Take what is queued; with nothing to run, wait for a command."""
        while not self._commands.empty() or not (self._engine.has_work or self._stopping):
            command = self._commands.get()
            if command is not None:
                self._engine.add(command)

    def _step_and_tell(self) -> None:
        """A method of its own: an idle thread must hold no outcomes, nor a merged copy's weights."""
        self._step_began = monotonic()
        outcomes = self._step()
        self._step_began = None
        if outcomes:
            self._call(self._deliver, outcomes)

    def _step(self) -> list[Outcome]:
        try:
            return self._engine.advance()
        except (
            BaseException
        ) as error:  # also a panic of Rust: it ends the requests of this step, not the server
            if is_lost(error, self._supervision.works):
                raise DeviceLost("the accelerator is lost; no step can run any more") from error
            logger.exception("a step failed; its requests end with an error")
            return self._engine.fail_all("the server failed while generating this answer")

    def _call(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            logger.debug("events dropped: the event loop is closed")

    # The event loop again.

    def _deliver(self, outcomes: list[Outcome]) -> None:
        """Read what was drawn and hand it on: work that the engine need not wait for."""
        if self.died.is_set():  # a step that hung has come back: nobody listens any more
            return
        for sequence, delta in self._engine.read(outcomes):
            stream = self._streams[sequence.id]
            if delta.finish_reason is not None:
                del self._streams[sequence.id]
                self._retry_after.finished(monotonic())
            stream.deliver(sequence, delta)

    def _told_warm(self, error: BaseException | None) -> None:
        assert self._warmed is not None
        if error is None:
            self._warmed.set_result(None)
        else:
            self._warmed.set_exception(error)

    async def _watch(self, limit: float) -> None:
        """End the engine once a step takes longer than ``limit`` seconds."""
        while not self.died.is_set():
            began = self._step_began
            left = limit if began is None else began + limit - monotonic()
            if left <= 0 and began == self._step_began:
                logger.critical(
                    "a step takes longer than --step-timeout (%g s): the engine is given up", limit
                )
                show_threads()
                self._die()
            await asyncio.sleep(min(max(left, 0.01), limit / 4))

    def _die(self) -> None:
        """Tell every open stream that the engine is gone, and whoever runs the process."""
        self.died.set()
        for stream in set(self._streams.values()):
            stream.fail("the engine has stopped; restart the server")
        self._streams.clear()
