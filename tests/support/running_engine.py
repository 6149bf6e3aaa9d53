"""An engine on its own thread behind the event loop, with a count of the ends it reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from manylora.server.engine.answer_reader import Outcome
from manylora.server.engine.async_engine import AsyncEngine, GenerateRequest
from manylora.server.engine.engine import Engine
from manylora.server.engine.sequence import Delta, FinishReason, ResolvedMix, SamplingParams, Sequence
from manylora.server.engine.stream import Stream
from tests.support.adapter_set import prompt_of
from tests.support.engine_harness import EngineHarness
from tests.support.waiting import until


@dataclass
class CountedHold:
    """What a request for the base model holds; counts how often it was given back."""

    mix: ResolvedMix
    served_model: str = "base"
    released: int = 0

    def release(self) -> None:
        """Count that the lease was given back."""
        self.released += 1


class RunningEngine:
    """An :class:`AsyncEngine` on ``core``, and every terminal event that it has reported."""

    def __init__(self, core: Engine, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.core = core
        self.engine = engine
        self.held: list[CountedHold] = []
        self.ends: Counter[int] = Counter()  # terminal events that the engine reported, by sequence
        self.heard: Counter[int] = Counter()  # those that came out on the loop
        self.reasons: list[str] = []  # of those, in their order
        monkeypatch.setattr(core, "advance", self._counting(core.advance))
        monkeypatch.setattr(core, "fail_all", self._counting(core.fail_all))

    def _counting(self, report: Callable[..., list[Outcome]]) -> Callable[..., list[Outcome]]:
        def counting(*args: object) -> list[Outcome]:
            outcomes = report(*args)
            self.ends.update(o.sequence.id for o in outcomes if o.finish_reason is not None)
            return outcomes

        return counting

    def _ended(self, sequence: Sequence, reason: FinishReason) -> None:
        self.heard[sequence.id] += 1
        self.reasons.append(reason.value)

    def ask(self, length: int = 5, max_tokens: int = 8, n: int = 1) -> Stream:
        """A request for ``n`` greedy answers of exactly ``max_tokens`` tokens."""
        held = CountedHold(ResolvedMix())
        request = GenerateRequest(
            prompt_of(length), SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True), n
        )
        stream = self.engine.submit(request, held, self._ended)
        self.held.append(held)
        return stream

    async def idle(self) -> None:
        """Wait until nothing is open; then every sequence has ended once and nothing is held."""
        await until(lambda: not self.engine.num_open and not self.core.has_work)
        assert set(self.ends.values()) <= {1}
        assert self.heard == self.ends
        assert [held.released for held in self.held] == [1] * len(self.held)
        self.core.check()
        assert self.core.blocks.num_used == 0


@asynccontextmanager
async def start_engine(
    harness: EngineHarness, patch: pytest.MonkeyPatch, *, max_open: int = 100, **sizes: int
) -> AsyncIterator[RunningEngine]:
    """Start an engine; at the end of the block it is stopped, and must be idle with nothing held."""
    core = harness.new_engine(**sizes)
    engine = AsyncEngine(core, max_model_len=512, max_open=max_open)
    running_engine = RunningEngine(core, engine, patch)
    engine.start()
    try:
        yield running_engine
    finally:
        await engine.stop()
    await running_engine.idle()


async def collect(stream: Stream) -> list[Delta]:
    """Everything that a request is answered."""
    return [delta async for delta in stream]
