"""A running engine behind an event loop, with a count of what it reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import pytest

from manylora.server.engine.async_engine import AsyncEngine, GenerateRequest, Stream
from manylora.server.engine.engine import Engine, Event
from manylora.server.engine.sequence import Delta, ResolvedMix, SamplingParams
from manylora.server.residency.lease import Lease
from tests.support.adapter_set import prompt_of
from tests.support.engine_harness import EngineHarness
from tests.support.waiting import until


@dataclass
class CountedLease:
    """The base model's lease; says how often it was given back."""

    mix: ResolvedMix
    released: int = 0

    def release(self) -> None:
        self.released += 1


class RunningEngine:
    """A running engine, and every terminal event it has reported."""

    def __init__(self, core: Engine, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.core = core
        self.engine = engine
        self.leases: list[CountedLease] = []
        self.ends: Counter[int] = Counter()
        self.reasons: list[str] = []
        deliver = engine._deliver

        def counting(events: list[Event]) -> None:
            for sequence, delta in events:
                if delta.finish_reason is not None:
                    self.ends[sequence.id] += 1
                    self.reasons.append(delta.finish_reason.value)
            deliver(events)

        monkeypatch.setattr(engine, "_deliver", counting)

    def ask(self, length: int = 5, max_tokens: int = 8, n: int = 1) -> Stream:
        lease = CountedLease(ResolvedMix())
        request = GenerateRequest(
            prompt_of(length), SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True), n
        )
        stream = self.engine.submit(request, cast(Lease, lease))
        self.leases.append(lease)
        return stream

    async def idle(self) -> None:
        """Wait until nothing is open; then every sequence has ended once and nothing is held."""
        await until(lambda: not self.engine.num_open and not self.core.has_work)
        assert set(self.ends.values()) <= {1}
        assert [lease.released for lease in self.leases] == [1] * len(self.leases)
        self.core.check()
        assert self.core.blocks.num_used == 0


@asynccontextmanager
async def start_engine(
    harness: EngineHarness, patch: pytest.MonkeyPatch, *, max_open: int = 100, **sizes: int
) -> AsyncIterator[RunningEngine]:
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
    return [delta async for delta in stream]
