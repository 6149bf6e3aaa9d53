"""What one request hears of its sequences, and what it holds until they have ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from manylora.server.engine.sequence import Delta, FinishReason, ResolvedMix, Sequence


class Held(Protocol):
    """What sequences run with; whoever submits it hands it over, and it is released with their last event."""

    @property
    def served_model(self) -> str:
        """The mix as a model string."""

    @property
    def mix(self) -> ResolvedMix:
        """Pages that stay where they are until :meth:`release`."""

    def release(self) -> None:
        """Give it back; once is enough."""


Ended = Callable[[Sequence, FinishReason], None]  # hears of a sequence that has ended, on the loop


class Stream:
    """The deltas of one request's sequences, interleaved; ends once every sequence has ended."""

    def __init__(
        self, sequences: list[Sequence], held: Held, wake: Callable[[], None], ended: Ended | None
    ) -> None:
        self._open = {s.id: s for s in sequences}
        self.held = held
        self._wake = wake
        self._ended = ended
        self._deltas: deque[Delta] = deque()
        self._ready = asyncio.Event()
        self.engine_died = False  # which ended it

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        while not self._deltas:
            if not self._open:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        return self._deltas.popleft()

    async def aclose(self) -> None:
        """Stop whatever still runs. Safe to call at any time, more than once."""
        self.abort()

    def abort(self) -> None:
        """Ask the engine to drop the sequences that still run; their room is free within one step."""
        for sequence in self._open.values():
            sequence.abort_requested = True
        if self._open:
            self._wake()

    def deliver(self, sequence: Sequence, delta: Delta) -> None:
        """Called on the loop with each event of this request."""
        if delta.finish_reason is not FinishReason.ABORT:
            self._deltas.append(delta)
        if delta.finish_reason is not None:
            del self._open[sequence.id]
            if self._ended is not None:
                self._ended(sequence, delta.finish_reason)
            if not self._open:
                self.held.release()
        self._ready.set()

    def fail(self, message: str) -> None:
        """End what still runs with an error, without the engine, which has died."""
        self.engine_died = True
        for sequence in list(self._open.values()):
            self.deliver(sequence, Delta(sequence.index, finish_reason=FinishReason.ERROR, error=message))
