"""Cancelling a request for room, at any moment, leaves nothing behind and holds nobody up."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.support.small_device_cache import SmallDeviceCache, cancel, waiting_for
from tests.support.waiting import until


async def test_cancelling_while_waiting_for_room() -> None:
    cache = SmallDeviceCache(2)
    a, b, big = cache.revision("a"), cache.revision("b"), cache.revision("big", 2)
    await cache.device.acquire([a])
    first = await waiting_for(cache, big)
    await until(lambda: cache.reads["big"])
    second = await waiting_for(cache, b)
    await cancel(first)
    await asyncio.wait_for(second, 30)  # nothing was released: the place in line alone was in its way
    assert (a.admitted, b.admitted, big.admitted) == (1, 1, 0)
    cache.device.check()


async def test_cancelling_the_second_in_line() -> None:
    cache = SmallDeviceCache(1)
    a, b, c = (cache.revision(x) for x in "abc")
    await cache.device.acquire([a])
    first, second = await waiting_for(cache, b), await waiting_for(cache, c)
    await cancel(second)
    cache.device.release([a])
    await first
    await until(lambda: c.pages is None)
    assert (a.admitted, b.admitted, c.admitted) == (0, 1, 0)


async def test_cancelling_while_reading_leaves_nothing_behind() -> None:
    cache = SmallDeviceCache(2)
    a, b = cache.revision("a"), cache.revision("b")
    cache.gate.clear()
    task = await waiting_for(cache, a)
    await until(lambda: cache.reads["a"])
    await cancel(task)
    cache.gate.set()
    await cache.device.acquire([b])  # which is served after the first
    assert a.pages is None
    assert a.admitted == 0
    assert cache.device.resident_bytes == b.nbytes
    cache.device.check()


async def test_cancelling_while_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SmallDeviceCache(2)
    a = cache.revision("a")
    with cache.writing_stopped(monkeypatch) as begun:
        task = await waiting_for(cache, a)
        await until(begun.is_set)
        await cancel(task)
        removal = asyncio.create_task(cache.device.remove(a))
        await asyncio.sleep(0)  # it begins
        assert not removal.done(), "its pages are being written"
    assert await removal == a.nbytes
    assert a.admitted == 0
    assert cache.device.resident_bytes == 0
    cache.device.check()


async def test_cancelling_in_the_moment_of_granting() -> None:
    cache = SmallDeviceCache(1)
    a, b = cache.revision("a"), cache.revision("b")
    task = asyncio.create_task(cache.device.acquire([a]))
    while not cache.device.is_resident(
        "a"
    ):  # which it is from the same turn of the loop on that it is granted
        await asyncio.sleep(0)
    assert a.admitted == 1
    assert not task.done(), "it has yet to hear of it"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert a.admitted == 0
    await cache.device.acquire([b])


@pytest.mark.parametrize("seed", range(6))
async def test_everyone_is_served(seed: int) -> None:
    """Sets of one to three revisions of all sizes, some cancelled, in little room; contents checked."""
    rng = random.Random(seed)
    cache = SmallDeviceCache(6)
    revisions = [cache.revision(f"r{i}", rng.randint(1, 2)) for i in range(12)]

    async def use() -> None:
        members = rng.sample(revisions, rng.randint(1, 3))
        await cache.device.acquire(members)
        try:
            for _ in range(rng.randint(0, 5)):
                await asyncio.sleep(0)
                assert all(cache.intact(r) for r in members)
        finally:
            cache.device.release(members)

    tasks = [asyncio.create_task(use()) for _ in range(80)]
    for task in rng.sample(tasks, 15):
        for _ in range(rng.randint(0, 3)):
            await asyncio.sleep(0)
        task.cancel()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results)
    await until(lambda: not cache.device.num_waiting)
    assert not any(r.admitted for r in revisions)
    cache.device.check()
    for one in revisions:
        await cache.device.remove(one)
    assert cache.device.resident_bytes == 0
