"""Cancelling a request for room, at any moment, leaves nothing behind and holds nobody up."""

from __future__ import annotations

import asyncio
import random

import pytest

import manylora.server.residency.device_cache as placement_module
from tests.support.small_device_cache import Shelf, cancel, waiting_for
from tests.support.waiting import settle, until


async def test_cancelling_while_waiting_for_room() -> None:
    shelf = Shelf(2)
    a, b, big = shelf.revision("a"), shelf.revision("b"), shelf.revision("big", 2)
    await shelf.placement.acquire([a])
    first = await waiting_for(shelf, big)
    await until(lambda: shelf.reads["big"])
    second = await waiting_for(shelf, b)
    await cancel(first)
    await asyncio.wait_for(second, 30)  # nothing was released: the place in line alone was in its way
    assert (a.leases, b.leases, big.leases) == (1, 1, 0)
    shelf.placement.check()


async def test_cancelling_the_second_in_line() -> None:
    shelf = Shelf(1)
    a, b, c = (shelf.revision(x) for x in "abc")
    await shelf.placement.acquire([a])
    first, second = await waiting_for(shelf, b), await waiting_for(shelf, c)
    await cancel(second)
    shelf.placement.release([a])
    await first
    await until(lambda: c.pages is None)
    assert (a.leases, b.leases, c.leases) == (0, 1, 0)


async def test_cancelling_while_reading_leaves_nothing_behind() -> None:
    shelf = Shelf(2)
    a, b = shelf.revision("a"), shelf.revision("b")
    shelf.gate.clear()
    task = await waiting_for(shelf, a)
    await until(lambda: shelf.reads["a"])
    await cancel(task)
    shelf.gate.set()
    await shelf.placement.acquire([b])  # which is served after the first
    assert a.pages is None
    assert a.leases == 0
    assert shelf.placement.resident_bytes == b.nbytes
    shelf.placement.check()


async def test_cancelling_while_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(2)
    a = shelf.revision("a")
    with shelf.writing_stopped(monkeypatch) as begun:
        task = await waiting_for(shelf, a)
        await until(begun.is_set)
        await cancel(task)
        removal = asyncio.create_task(shelf.placement.remove(a))
        await settle()
        assert not removal.done(), "its pages are being written"
    assert await removal == a.nbytes
    assert a.leases == 0
    assert shelf.placement.resident_bytes == 0
    shelf.placement.check()


async def test_cancelling_in_the_moment_of_granting(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(1)
    a, b = shelf.revision("a"), shelf.revision("b")
    task = asyncio.create_task(shelf.placement.acquire([a]))
    grant = shelf.placement._grant

    def grant_and_cancel(waiter: placement_module._Waiter) -> None:
        grant(waiter)
        assert a.leases == 1
        task.cancel()

    with monkeypatch.context() as patch:
        patch.setattr(shelf.placement, "_grant", grant_and_cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
    assert a.leases == 0
    await shelf.placement.acquire([b])


@pytest.mark.parametrize("seed", range(6))
async def test_everyone_is_served(seed: int) -> None:
    """Sets of one to three revisions of all sizes, some cancelled, in little room; contents checked."""
    rng = random.Random(seed)
    shelf = Shelf(6)
    revisions = [shelf.revision(f"r{i}", rng.randint(1, 2)) for i in range(12)]

    async def use() -> None:
        members = rng.sample(revisions, rng.randint(1, 3))
        await shelf.placement.acquire(members)
        try:
            for _ in range(rng.randint(0, 5)):
                await asyncio.sleep(0)
                assert all(shelf.intact(r) for r in members)
        finally:
            shelf.placement.release(members)

    tasks = [asyncio.create_task(use()) for _ in range(80)]
    for task in rng.sample(tasks, 15):
        for _ in range(rng.randint(0, 3)):
            await asyncio.sleep(0)
        task.cancel()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results)
    await until(lambda: not shelf.placement._line)
    assert not any(r.leases for r in revisions)
    shelf.placement.check()
    for one in revisions:
        await shelf.placement.remove(one)
    assert shelf.placement.resident_bytes == 0
