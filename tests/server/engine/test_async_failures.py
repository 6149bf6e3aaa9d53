"""Steps that raise, a thread that dies, a server that stops: nobody is left waiting."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch

from manylora.server.engine.answer_reader import Outcome
from manylora.server.engine.async_engine import AsyncEngine
from manylora.server.engine.sequence import FinishReason, Sequence
from manylora.server.errors import EngineDead
from manylora.server.kernels.inputs import StepInputs
from tests.support.engine_harness import EngineHarness
from tests.support.running_engine import RunningEngine, collect, start_engine
from tests.support.waiting import until


class Faulty:
    """A decoder that raises at one step."""

    def __init__(self, decoder: Any, at: int) -> None:
        self._decoder = decoder
        self.left = at
        self.vocab_size = decoder.vocab_size
        self.draw = decoder.draw

    def step(self, inputs: StepInputs) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("a kernel failed")
        logits: torch.Tensor = self._decoder.step(inputs)
        return logits


@pytest.mark.parametrize("at", [1, 2, 5])
async def test_a_step_that_raises_ends_its_requests_and_nothing_else(
    running_engine: RunningEngine, at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [d.token_ids for d in await collect(running_engine.ask(20, 8))]
    monkeypatch.setattr(running_engine.core, "decoder", Faulty(running_engine.core.decoder, at))
    results = await asyncio.gather(*(collect(running_engine.ask(20, 8, n=n)) for n in (1, 2)))
    failed = [d for r in results for d in r if d.finish_reason is FinishReason.ERROR]
    assert failed
    assert all(d.error and "a kernel failed" not in d.error for d in failed)
    assert all(r[-1].finish_reason for r in results)
    assert "a kernel failed" in caplog.text
    assert running_engine.engine.alive
    assert [d.token_ids for d in await collect(running_engine.ask(20, 8))] == expected


async def test_a_request_that_left_in_the_failing_step_ends_as_well(
    running_engine: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end belongs to the same step; it must reach the loop although the step raised."""
    begun = running_engine.ask(max_tokens=400)
    await anext(begun)
    (leaving,) = running_engine.core.scheduler.running
    stays = running_engine.ask(max_tokens=400)
    await anext(stays)
    original = running_engine.core.scheduler.schedule

    def leave_then_fail() -> object:
        if leaving.finish_reason is FinishReason.ABORT:
            raise RuntimeError("after the aborted were dropped")
        return original()

    monkeypatch.setattr(running_engine.core.scheduler, "schedule", leave_then_fail)
    await begun.aclose()
    assert (await collect(stays))[-1].finish_reason is FinishReason.ERROR
    monkeypatch.setattr(running_engine.core.scheduler, "schedule", original)
    await running_engine.idle()
    assert sorted(running_engine.reasons) == ["abort", "error"]


async def test_an_engine_thread_that_dies_leaves_nobody_waiting(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = harness.new_engine()
    engine = AsyncEngine(core, max_model_len=512, max_open=10)
    running_engine = RunningEngine(core, engine, monkeypatch)
    engine.start()
    stream = running_engine.ask(max_tokens=400)
    await anext(stream)

    def add(sequence: Sequence) -> None:
        raise RuntimeError("not even that")

    monkeypatch.setattr(core, "add", add)
    other = running_engine.ask()
    for one in (stream, other):
        assert (await collect(one))[-1].finish_reason is FinishReason.ERROR
    assert not engine.alive
    assert engine.num_open == 0
    assert [lease.released for lease in running_engine.held] == [1, 1]
    with pytest.raises(EngineDead):
        running_engine.ask()
    assert "not even that" in caplog.text
    await engine.stop()


async def test_stopping_ends_what_runs_waits_and_was_just_sent(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_engine(harness, monkeypatch, max_batch_tokens=2) as running_engine:
        streams = [running_engine.ask(max_tokens=400) for _ in range(4)]
        await anext(streams[0])
        streams += [running_engine.ask(max_tokens=400) for _ in range(3)]
        await running_engine.engine.stop()
        assert not running_engine.engine.alive
        for stream in streams:
            await asyncio.wait_for(collect(stream), 10)
        with pytest.raises(EngineDead):
            running_engine.ask()
    assert running_engine.reasons == ["abort"] * 7


async def test_what_is_sent_in_the_last_moment_ends_too(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread looks at its queue before it leaves, even with nothing left to run."""
    core = harness.new_engine()
    engine = AsyncEngine(core, max_model_len=512, max_open=10)
    running_engine = RunningEngine(core, engine, monkeypatch)
    advance = core.advance
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()
    proceed = threading.Event()

    def slow() -> list[Outcome]:
        loop.call_soon_threadsafe(gate.set)
        assert proceed.wait(30)
        return advance()

    monkeypatch.setattr(core, "advance", slow)
    engine.start()
    first = running_engine.ask(max_tokens=1)
    await gate.wait()
    last = running_engine.ask(max_tokens=1)
    stop = asyncio.create_task(engine.stop())
    await until(lambda: not engine.alive)
    proceed.set()
    await stop
    for stream in (first, last):
        await asyncio.wait_for(collect(stream), 10)
    await running_engine.idle()


async def test_stopping_twice_and_without_a_start(harness: EngineHarness) -> None:
    engine = AsyncEngine(harness.new_engine(), max_model_len=512, max_open=10)
    assert not engine.alive
    await engine.stop()
    engine = AsyncEngine(harness.new_engine(), max_model_len=512, max_open=10)
    engine.start()
    assert engine.alive
    await engine.stop()
    await engine.stop()
    assert not engine.alive
