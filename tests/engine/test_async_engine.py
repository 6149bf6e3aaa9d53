"""The engine behind the event loop: every sequence ends exactly once, whatever happens to it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from server.engine.async_engine import AsyncEngine, GenerateRequest, Stream
from server.engine.engine import Engine, Event
from server.engine.residency import Lease
from server.engine.sequence import Delta, FinishReason, ResolvedMix, SamplingParams, Sequence
from server.errors import ContextTooLong, EngineDead, QueueFull
from server.kernels.inputs import StepInputs
from tests.engine.waiting import settle, until
from tests.engine.zoo import prompt_of
from tests.harness import Harness


@dataclass
class CountedLease:
    """The base model's lease; says how often it was given back."""

    mix: ResolvedMix
    released: int = 0

    def release(self) -> None:
        self.released += 1


class Desk:
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


@pytest.fixture(scope="module")
def harness(tiny_llama: Path) -> Harness:
    return Harness(tiny_llama)


@asynccontextmanager
async def opened(
    harness: Harness, patch: pytest.MonkeyPatch, *, max_open: int = 100, **sizes: int
) -> AsyncIterator[Desk]:
    core = harness.new_engine(**sizes)
    engine = AsyncEngine(core, max_model_len=512, max_open=max_open)
    desk = Desk(core, engine, patch)
    engine.start()
    try:
        yield desk
    finally:
        await engine.stop()
    await desk.idle()


@pytest.fixture
async def desk(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    async with opened(harness, monkeypatch) as made:
        yield made


async def collect(stream: Stream) -> list[Delta]:
    return [delta async for delta in stream]


async def test_a_stream_ends_after_its_last_delta(desk: Desk) -> None:
    deltas = await collect(desk.ask(max_tokens=5))
    assert [d.finish_reason for d in deltas] == [None] * 4 + [FinishReason.LENGTH]
    assert sum(len(d.token_ids) for d in deltas) == 5
    await desk.idle()


async def test_the_answers_of_one_request_come_interleaved(desk: Desk) -> None:
    deltas = await collect(desk.ask(max_tokens=4, n=3))
    assert Counter(d.index for d in deltas) == {0: 4, 1: 4, 2: 4}
    assert sorted(d.index for d in deltas if d.finish_reason) == [0, 1, 2]
    await desk.idle()


async def test_many_at_once(desk: Desk) -> None:
    results = await asyncio.gather(*(collect(desk.ask(1 + i, 1 + i % 7)) for i in range(40)))
    assert [sum(len(d.token_ids) for d in r) for r in results] == [1 + i % 7 for i in range(40)]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("after", range(0, 9, 2))
async def test_leaving_after_some_deltas(desk: Desk, after: int, n: int) -> None:
    stream = desk.ask(max_tokens=400, n=n)
    for _ in range(after):
        await anext(stream)
    await stream.aclose()
    await stream.aclose()
    await desk.idle()
    assert sum(desk.ends.values()) == n
    assert desk.reasons == ["abort"] * n
    assert all(d.finish_reason is None for d in await collect(stream))


@pytest.mark.parametrize("hops", range(6))
async def test_leaving_while_the_prompt_is_computed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, hops: int
) -> None:
    async with opened(harness, monkeypatch, max_batch_tokens=4) as desk:
        stream = desk.ask(length=400)
        for _ in range(hops):
            await asyncio.sleep(0.001)
        await stream.aclose()
        await desk.idle()
        assert desk.reasons == ["abort"]


async def test_leaving_while_waiting_in_the_queue(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(harness, monkeypatch, max_batch_tokens=1) as desk:  # one row: one runs, all others wait
        first = desk.ask(max_tokens=300)
        waiting = [desk.ask() for _ in range(5)]
        await anext(first)
        for stream in waiting:
            await stream.aclose()
        await until(lambda: desk.engine.num_open == 1)
        assert desk.reasons == ["abort"] * 5
        await first.aclose()


async def test_leaving_after_the_end(desk: Desk) -> None:
    stream = desk.ask(max_tokens=2)
    await collect(stream)
    await stream.aclose()
    await desk.idle()
    assert desk.reasons == ["length"]


async def test_one_leaves_and_its_neighbours_go_on(desk: Desk) -> None:
    expected = [d.token_ids for d in await collect(desk.ask(7, 30))]
    stay = desk.ask(7, 30)
    leave = [desk.ask(9, 400) for _ in range(4)]
    got = []
    async for delta in stay:
        got.append(delta.token_ids)
        if leave:
            await leave.pop().aclose()
    assert got == expected


async def test_no_token_is_drawn_after_an_abort(desk: Desk) -> None:
    """Within a step the sequence is gone; what that step computed for it is thrown away."""
    stream = desk.ask(max_tokens=400)
    await anext(stream)
    sequence = next(iter(stream._open.values()))
    await stream.aclose()
    await desk.idle()
    left = len(list(await collect(stream)))
    assert sequence.num_output_tokens <= 1 + left + 1


@pytest.mark.parametrize(("prompt", "answer", "fits"), [(500, 12, True), (500, 13, False), (513, 0, False)])
async def test_the_context_is_a_bound(desk: Desk, prompt: int, answer: int, fits: bool) -> None:
    if fits:
        await desk.ask(prompt, answer).aclose()
        return
    with pytest.raises(ContextTooLong) as caught:
        desk.ask(prompt, answer)
    assert caught.value.param == "max_tokens"
    assert desk.engine.num_open == 0


async def test_a_full_queue_says_when_to_come_back(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(harness, monkeypatch, max_open=3) as desk:
        first = desk.ask(max_tokens=400, n=2)
        with pytest.raises(QueueFull) as caught:
            desk.ask(n=2)
        assert 1.0 <= caught.value.retry_after <= 60.0
        second = desk.ask(max_tokens=400)
        with pytest.raises(QueueFull):
            desk.ask()
        await second.aclose()
        await until(lambda: desk.engine.num_open == 2)
        await collect(desk.ask())
        await first.aclose()


class Faulty:
    """A decoder that raises at one step."""

    def __init__(self, decoder: Any, at: int) -> None:
        self._decoder = decoder
        self.left = at

    def step(self, inputs: StepInputs) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("a kernel failed")
        logits: torch.Tensor = self._decoder.step(inputs)
        return logits


@pytest.mark.parametrize("at", [1, 2, 5])
async def test_a_step_that_raises_ends_its_requests_and_nothing_else(
    desk: Desk, at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [d.token_ids for d in await collect(desk.ask(20, 8))]
    monkeypatch.setattr(desk.core, "_decoder", Faulty(desk.core._decoder, at))
    results = await asyncio.gather(*(collect(desk.ask(20, 8, n=n)) for n in (1, 2)))
    failed = [d for r in results for d in r if d.finish_reason is FinishReason.ERROR]
    assert failed
    assert all(d.error and "a kernel failed" not in d.error for d in failed)
    assert all(r[-1].finish_reason for r in results)
    assert "a kernel failed" in caplog.text
    assert desk.engine.alive
    assert [d.token_ids for d in await collect(desk.ask(20, 8))] == expected


async def test_a_request_that_left_in_the_failing_step_ends_as_well(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end belongs to the same step; it must reach the loop although the step raised."""
    begun, stays = desk.ask(max_tokens=400), desk.ask(max_tokens=400)
    await anext(begun)
    await anext(stays)
    original = desk.core.scheduler.schedule

    def leave_then_fail() -> object:
        if begun._open and next(iter(begun._open.values())).finish_reason is FinishReason.ABORT:
            raise RuntimeError("after the aborted were dropped")
        return original()

    monkeypatch.setattr(desk.core.scheduler, "schedule", leave_then_fail)
    await begun.aclose()
    assert (await collect(stays))[-1].finish_reason is FinishReason.ERROR
    monkeypatch.setattr(desk.core.scheduler, "schedule", original)
    await desk.idle()
    assert sorted(desk.reasons) == ["abort", "error"]


async def test_an_engine_thread_that_dies_leaves_nobody_waiting(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core = harness.new_engine()
    engine = AsyncEngine(core, max_model_len=512, max_open=10)
    desk = Desk(core, engine, monkeypatch)
    engine.start()
    stream = desk.ask(max_tokens=400)
    await anext(stream)

    def add(sequence: Sequence) -> None:
        raise RuntimeError("not even that")

    monkeypatch.setattr(core, "add", add)
    other = desk.ask()
    for one in (stream, other):
        assert (await collect(one))[-1].finish_reason is FinishReason.ERROR
    assert not engine.alive
    assert engine.num_open == 0
    assert [lease.released for lease in desk.leases] == [1, 1]
    with pytest.raises(EngineDead):
        desk.ask()
    assert "not even that" in caplog.text
    await engine.stop()


async def test_stopping_ends_what_runs_waits_and_was_just_sent(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(harness, monkeypatch, max_batch_tokens=2) as desk:
        streams = [desk.ask(max_tokens=400) for _ in range(4)]
        await anext(streams[0])
        streams += [desk.ask(max_tokens=400) for _ in range(3)]
        await desk.engine.stop()
        assert not desk.engine.alive
        for stream in streams:
            await asyncio.wait_for(collect(stream), 10)
        with pytest.raises(EngineDead):
            desk.ask()
    assert desk.reasons == ["abort"] * 7


async def test_what_is_sent_in_the_last_moment_ends_too(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread looks at its queue before it leaves, even with nothing left to run."""
    core = harness.new_engine()
    engine = AsyncEngine(core, max_model_len=512, max_open=10)
    desk = Desk(core, engine, monkeypatch)
    step = engine._step
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()
    proceed = threading.Event()

    def slow() -> list[Event]:
        loop.call_soon_threadsafe(gate.set)
        assert proceed.wait(30)
        return step()

    monkeypatch.setattr(engine, "_step", slow)
    engine.start()
    first = desk.ask(max_tokens=1)
    await gate.wait()
    last = desk.ask(max_tokens=1)
    stop = asyncio.create_task(engine.stop())
    await settle()
    proceed.set()
    await stop
    for stream in (first, last):
        await asyncio.wait_for(collect(stream), 10)
    await desk.idle()


async def test_stopping_twice_and_without_a_start(harness: Harness) -> None:
    engine = AsyncEngine(harness.new_engine(), max_model_len=512, max_open=10)
    assert not engine.alive
    await engine.stop()
    engine = AsyncEngine(harness.new_engine(), max_model_len=512, max_open=10)
    engine.start()
    assert engine.alive
    await engine.stop()
    await engine.stop()
    assert not engine.alive
