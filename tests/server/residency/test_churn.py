"""Adapters come, go and are replaced under long answers: nobody gets another's weights, nobody starves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from manylora.server.engine.async_engine import AsyncEngine, GenerateRequest
from manylora.server.engine.sequence import FinishReason, SamplingParams
from tests.support.adapter_manager import ManagerSetup
from tests.support.adapter_set import prompt_of
from tests.support.waiting import until


@asynccontextmanager
async def serving(setup: ManagerSetup) -> AsyncIterator[AsyncEngine]:
    core = setup.harness.new_engine()
    engine = AsyncEngine(core, max_model_len=512, max_open=1000)
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
    core.check()
    assert core.blocks.num_used == 0
    setup.check()


async def answer(
    setup: ManagerSetup, engine: AsyncEngine, expression: str | None, seed: int, count: int
) -> list[int]:
    held = await setup.hold("" if expression is None else expression)
    params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
    tokens: list[int] = []
    last = None
    async for delta in engine.submit(GenerateRequest(prompt_of(20, seed), params), held):
        tokens += delta.token_ids
        last = delta
    assert last is not None
    assert last.finish_reason is FinishReason.LENGTH
    return tokens


async def test_loads_and_unloads_do_not_touch_running_answers(setup: ManagerSetup) -> None:
    asks = ["a", "b", "a*0.5+b*-1", None]
    await setup.load("a", "b")
    async with serving(setup) as engine:
        quiet = [await answer(setup, engine, ask, i, 120) for i, ask in enumerate(asks)]
        assert len({tuple(tokens) for tokens in quiet}) == len(asks)
    async with serving(setup) as engine:
        running = [asyncio.create_task(answer(setup, engine, ask, i, 120)) for i, ask in enumerate(asks)]
        await until(lambda: engine.num_open == len(asks))
        others = [setup.write(f"other{i}", seed=100 + i) for i in range(4)]
        rounds = 0
        while not all(task.done() for task in running) or rounds < 6:
            path = others[rounds % len(others)]
            await setup.manager.admin.load("other", path, replace=True)
            await answer(setup, engine, "other", rounds, 2)
            if rounds % 3 == 2:
                await setup.manager.deletions.delete("other")
            rounds += 1
        assert [await task for task in running] == quiet


async def test_their_own_names_are_replaced_under_running_answers(setup: ManagerSetup) -> None:
    await setup.load("a")
    async with serving(setup) as engine:
        quiet = await answer(setup, engine, "a", 0, 100)
        running = asyncio.create_task(answer(setup, engine, "a", 0, 100))
        await until(lambda: engine.num_open)
        await setup.manager.admin.load("a", setup.write("successor", seed=77), replace=True)
        new = await answer(setup, engine, "a", 0, 100)
        assert await running == quiet
        assert new != quiet
        assert (await setup.manager.deletions.delete("a")).bytes_freed == 2 * setup.unit, "both revisions"
        await until(lambda: setup.pool.used_bytes == 0)


@pytest.mark.parametrize("seed", range(2))
async def test_zipf_traffic_over_many_adapters_on_little_room(setup: ManagerSetup, seed: int) -> None:
    """24 adapters, room for four: every request ends, and with the answer its adapter gives."""
    rng = random.Random(seed)
    names = [f"n{i}" for i in range(24)]
    await setup.load(*names)
    weights = [1 / (i + 1) for i in range(len(names))]
    asks = ["+".join(sorted(set(rng.choices(names, weights, k=rng.choice([1, 1, 1, 2]))))) for _ in range(90)]
    async with serving(setup) as engine:
        expected = {ask: await answer(setup, engine, ask, 1, 6) for ask in sorted(set(asks))}
    async with serving(setup) as engine:
        crowd = asyncio.gather(*(answer(setup, engine, ask, 1, 6) for ask in asks))
        results = await asyncio.wait_for(crowd, 120)
    for ask, tokens in zip(asks, results, strict=True):
        assert tokens == expected[ask]
    assert len({tuple(t) for t in expected.values()}) > len(expected) // 2
