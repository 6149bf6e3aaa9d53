"""Room on the device: who gets it, who waits, who is evicted, and what cancelling leaves behind."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import server.engine.placement as placement_module
from adapters.base import TargetModule
from server.engine.placement import Placement, Revision
from server.model.pages import PackedAdapter, PagePool
from tests.engine.waiting import settle, until

UNIT = 64  # elements: one row of A and one column of B of the only module
ZERO_PAGE = 32


class Shelf:
    """A placement over ``room`` units, with revisions whose content tells them apart."""

    def __init__(self, room: int) -> None:
        module = TargetModule("q", 32, 32)
        capacity = (room * UNIT + ZERO_PAGE) * 4
        self.pool = PagePool((module,), capacity, torch.float32, torch.device("cpu"))
        assert self.pool.capacity_bytes == room * UNIT * 4
        self.placement = Placement(self.pool, self._read)
        self.reads: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.gate = threading.Event()  # reads wait for it
        self.gate.set()

    def revision(self, digest: str, size: int = 1) -> Revision:
        return Revision(digest, Path("/nowhere"), rank=size, modules=1, nbytes=size * UNIT * 4)

    def _read(self, revision: Revision) -> PackedAdapter:
        self.reads[revision.digest] += 1
        assert self.gate.wait(30)
        if revision.digest in self.broken:
            raise OSError("gone")
        return self.packed(revision)

    def packed(self, revision: Revision) -> PackedAdapter:
        data = torch.full((revision.rank * UNIT,), float(sum(revision.digest.encode())))
        rank = np.array([revision.rank], np.int32)
        return PackedAdapter(revision.digest, data, np.zeros(1, np.int64), rank)

    def intact(self, revision: Revision) -> bool:
        """Whether the pool still holds what ``revision`` is."""
        assert revision.pages is not None
        start = revision.pages.start
        data = self.packed(revision).data
        return torch.equal(self.pool.data[start : start + data.numel()], data)

    @contextmanager
    def writing_stopped(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
        """Within it, copies to the device have begun but wait; gives what says that one has begun."""
        begun, proceed = threading.Event(), threading.Event()
        original = self.pool.write

        def write(*args: object) -> None:
            begun.set()
            assert proceed.wait(30)
            original(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(self.pool, "write", write)
        try:
            yield begun
        finally:
            proceed.set()
            monkeypatch.setattr(self.pool, "write", original)


async def waiting_for(shelf: Shelf, *revisions: Revision) -> asyncio.Task[None]:
    """A task that has asked for ``revisions`` and does not have them."""
    task = asyncio.create_task(shelf.placement.acquire(revisions))
    await settle()
    assert not task.done()
    return task


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_revision_is_read_once_and_stays() -> None:
    shelf = Shelf(2)
    a = shelf.revision("a")
    for _ in range(3):
        await shelf.placement.acquire([a])
        assert a.leases == 1
        assert shelf.intact(a)
        shelf.placement.release([a])
    assert shelf.reads == {"a": 1}
    assert shelf.placement.num_resident == 1
    assert shelf.placement.resident_bytes == a.nbytes
    shelf.placement.check()


async def test_the_least_recently_used_goes() -> None:
    shelf = Shelf(2)
    a, b, c = (shelf.revision(x) for x in "abc")
    for one in (a, b, a, c):
        await shelf.placement.acquire([one])
        shelf.placement.release([one])
    assert [r.pages is not None for r in (a, b, c)] == [True, False, True]


async def test_what_is_leased_is_never_evicted() -> None:
    shelf = Shelf(2)
    a, b, c = (shelf.revision(x) for x in "abc")
    await shelf.placement.acquire([a, b])
    task = await waiting_for(shelf, c)
    await until(lambda: shelf.reads["c"])
    assert shelf.intact(a)
    assert shelf.intact(b)
    shelf.placement.release([a])
    await task
    assert shelf.intact(b)
    assert shelf.intact(c)
    assert a.pages is None


async def test_two_leases_on_one_revision() -> None:
    shelf = Shelf(1)
    a, b = shelf.revision("a"), shelf.revision("b")
    await shelf.placement.acquire([a])
    await shelf.placement.acquire([a])
    task = await waiting_for(shelf, b)
    shelf.placement.release([a])
    await settle()
    assert not task.done()
    shelf.placement.release([a])
    await task


async def test_sets_are_granted_whole() -> None:
    """Room for two and mixes of two in every combination: half-granted ones would block each other."""
    shelf = Shelf(2)
    revisions = [shelf.revision(x) for x in "abcd"]

    async def use(i: int, j: int) -> None:
        members = [revisions[i], revisions[j]]
        await shelf.placement.acquire(members)
        await settle()
        assert all(shelf.intact(r) for r in members)
        shelf.placement.release(members)

    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    await asyncio.wait_for(asyncio.gather(*(use(i, j) for i, j in pairs * 3)), 30)
    assert not any(r.leases for r in revisions)
    shelf.placement.check()


async def test_resident_sets_pass_while_others_wait_for_room() -> None:
    shelf = Shelf(2)
    a, b, c = shelf.revision("a"), shelf.revision("b"), shelf.revision("c", 2)
    await shelf.placement.acquire([a])
    task = await waiting_for(shelf, c)
    await shelf.placement.acquire([a])  # at once
    shelf.placement.release([a])
    shelf.placement.release([a])
    await task
    assert b.pages is None


async def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of requests for a resident adapter can't keep a cold one out for ever."""
    now = [100.0]
    monkeypatch.setattr(placement_module, "monotonic", lambda: now[0])
    shelf = Shelf(1)
    hot, cold = shelf.revision("hot"), shelf.revision("cold")
    await shelf.placement.acquire([hot])
    first = await waiting_for(shelf, cold)
    now[0] += 0.2
    await shelf.placement.acquire([hot])
    shelf.placement.release([hot])
    now[0] += 0.1
    second = await waiting_for(shelf, hot)  # now behind the cold one
    shelf.placement.release([hot])
    await first
    assert not second.done()
    shelf.placement.release([cold])
    await second


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


async def test_a_failed_read_concerns_one_set_only() -> None:
    shelf = Shelf(2)
    a, b, c = (shelf.revision(x) for x in "abc")
    shelf.broken.add("b")
    results = await asyncio.gather(
        *(shelf.placement.acquire(m) for m in ([a], [a, b], [c])), return_exceptions=True
    )
    assert results[0] is results[2] is None
    assert isinstance(results[1], OSError)
    assert (a.leases, b.leases, c.leases) == (1, 0, 1)
    shelf.broken.clear()
    shelf.placement.release([a])
    await shelf.placement.acquire([b])
    shelf.placement.check()


async def test_room_split_by_its_own_idle_member() -> None:
    """[ . | b | . ]: a set of b and one that takes two thirds fits, though not around b."""
    shelf = Shelf(3)
    a, b, big = shelf.revision("a"), shelf.revision("b"), shelf.revision("big", 2)
    for one in (a, b):
        await shelf.placement.acquire([one])
        shelf.placement.release([one])
    shelf.placement.evict(a)
    await asyncio.wait_for(shelf.placement.acquire([b, big]), 30)
    assert shelf.intact(b)
    assert shelf.intact(big)
    shelf.placement.check()


async def test_a_new_revision_is_offered_room() -> None:
    shelf = Shelf(2)
    a, b, c = (shelf.revision(x) for x in "abc")
    for one in (a, b, c):
        await shelf.placement.offer(one, shelf.packed(one))
        assert one.leases == 0
    assert [r.pages is not None for r in (a, b, c)] == [False, True, True]
    assert not shelf.reads
    await shelf.placement.acquire([b, c])
    await shelf.placement.offer(a, shelf.packed(a))
    assert a.pages is None
    await shelf.placement.offer(b, shelf.packed(b))
    assert shelf.placement.resident_bytes == 2 * b.nbytes
    shelf.placement.check()


async def test_the_empty_set_needs_nothing() -> None:
    shelf = Shelf(1)
    await shelf.placement.acquire([shelf.revision("a")])
    task = await waiting_for(shelf, shelf.revision("b"))
    await shelf.placement.acquire([])
    await cancel(task)


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
