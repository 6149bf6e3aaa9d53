"""The engine behind the event loop: every sequence ends exactly once, whenever its client leaves."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from manylora.server.engine.sequence import FinishReason
from manylora.server.errors import ContextTooLong, QueueFull
from tests.support.engine_harness import EngineHarness
from tests.support.running_engine import RunningEngine, collect, start_engine
from tests.support.waiting import until


async def test_a_stream_ends_after_its_last_delta(running_engine: RunningEngine) -> None:
    deltas = await collect(running_engine.ask(max_tokens=5))
    assert [d.finish_reason for d in deltas] == [None] * 4 + [FinishReason.LENGTH]
    assert sum(len(d.token_ids) for d in deltas) == 5
    await running_engine.idle()


async def test_the_answers_of_one_request_come_interleaved(running_engine: RunningEngine) -> None:
    deltas = await collect(running_engine.ask(max_tokens=4, n=3))
    assert Counter(d.index for d in deltas) == {0: 4, 1: 4, 2: 4}
    assert sorted(d.index for d in deltas if d.finish_reason) == [0, 1, 2]
    await running_engine.idle()


async def test_many_at_once(running_engine: RunningEngine) -> None:
    results = await asyncio.gather(*(collect(running_engine.ask(1 + i, 1 + i % 7)) for i in range(40)))
    assert [sum(len(d.token_ids) for d in r) for r in results] == [1 + i % 7 for i in range(40)]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("after", range(0, 9, 2))
async def test_leaving_after_some_deltas(running_engine: RunningEngine, after: int, n: int) -> None:
    stream = running_engine.ask(max_tokens=400, n=n)
    for _ in range(after):
        await anext(stream)
    await stream.aclose()
    await stream.aclose()
    await running_engine.idle()
    assert sum(running_engine.ends.values()) == n
    assert running_engine.reasons == ["abort"] * n
    assert all(d.finish_reason is None for d in await collect(stream))


@pytest.mark.parametrize("hops", range(6))
async def test_leaving_while_the_prompt_is_computed(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch, hops: int
) -> None:
    async with start_engine(harness, monkeypatch, max_batch_tokens=4) as running_engine:
        stream = running_engine.ask(length=400)
        for _ in range(hops):
            await asyncio.sleep(0.001)
        await stream.aclose()
        await running_engine.idle()
        assert running_engine.reasons == ["abort"]


async def test_leaving_while_waiting_in_the_queue(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_row: dict[str, int] = {"max_batch_tokens": 1}  # one sequence runs, all others wait
    async with start_engine(harness, monkeypatch, **one_row) as running_engine:
        first = running_engine.ask(max_tokens=300)
        waiting = [running_engine.ask() for _ in range(5)]
        await anext(first)
        for stream in waiting:
            await stream.aclose()
        await until(lambda: running_engine.engine.num_open == 1)
        assert running_engine.reasons == ["abort"] * 5
        await first.aclose()


async def test_leaving_after_the_end(running_engine: RunningEngine) -> None:
    stream = running_engine.ask(max_tokens=2)
    await collect(stream)
    await stream.aclose()
    await running_engine.idle()
    assert running_engine.reasons == ["length"]


async def test_one_leaves_and_its_neighbours_go_on(running_engine: RunningEngine) -> None:
    expected = [d.token_ids for d in await collect(running_engine.ask(7, 30))]
    stay = running_engine.ask(7, 30)
    leave = [running_engine.ask(9, 400) for _ in range(4)]
    got = []
    async for delta in stay:
        got.append(delta.token_ids)
        if leave:
            await leave.pop().aclose()
    assert got == expected


async def test_no_token_is_drawn_after_an_abort(running_engine: RunningEngine) -> None:
    """Within a step the sequence is gone; what that step computed for it is thrown away."""
    stream = running_engine.ask(max_tokens=400)
    await anext(stream)
    (sequence,) = running_engine.core.scheduler.running
    await stream.aclose()
    await running_engine.idle()
    left = len(list(await collect(stream)))
    assert sequence.num_output_tokens <= 1 + left + 1


@pytest.mark.parametrize(("prompt", "answer", "fits"), [(500, 12, True), (500, 13, False), (513, 0, False)])
async def test_the_context_is_a_bound(
    running_engine: RunningEngine, prompt: int, answer: int, fits: bool
) -> None:
    if fits:
        await running_engine.ask(prompt, answer).aclose()
        return
    with pytest.raises(ContextTooLong) as caught:
        running_engine.ask(prompt, answer)
    assert caught.value.param == "max_tokens"
    assert running_engine.engine.num_open == 0


async def test_a_full_queue_says_when_to_come_back(
    harness: EngineHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_engine(harness, monkeypatch, max_open=3) as running_engine:
        first = running_engine.ask(max_tokens=400, n=2)
        with pytest.raises(QueueFull) as caught:
            running_engine.ask(n=2)
        assert 1.0 <= caught.value.retry_after <= 60.0
        second = running_engine.ask(max_tokens=400)
        with pytest.raises(QueueFull):
            running_engine.ask()
        await second.aclose()
        await until(lambda: running_engine.engine.num_open == 2)
        await collect(running_engine.ask())
        await first.aclose()
