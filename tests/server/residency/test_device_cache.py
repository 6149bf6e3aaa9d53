"""Room on the device: who gets it, who waits, and who is evicted."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

import manylora.server.residency.device_cache as placement_module
from manylora.server.model.pages.pool import PackedAdapter
from manylora.server.residency.revision import Revision
from tests.support.adapter_manager import Shop
from tests.support.small_device_cache import Shelf, cancel, waiting_for
from tests.support.waiting import settle, until


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
    await until(lambda: shelf.placement._line[0].since)
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


async def test_zipf_traffic_over_500_adapters_starves_nobody() -> None:
    """Room for 20: every request is served, the rare ones too, and none waits for more than its share."""
    rng = random.Random(0)
    shelf = Shelf(20, memory=40)
    revisions = [shelf.revision(f"r{i}") for i in range(500)]
    weights = [1 / (i + 1) for i in range(500)]
    served, waits = 0, []

    async def request(revision: Revision) -> None:
        nonlocal served
        before = served
        await shelf.placement.acquire([revision])
        waits.append(served - before)  # others that were served in between
        await asyncio.sleep(0)
        assert shelf.intact(revision)
        shelf.placement.release([revision])
        served += 1

    async def client() -> None:
        for revision in rng.choices(revisions, weights, k=40):
            await request(revision)

    await asyncio.wait_for(asyncio.gather(*(client() for _ in range(32))), 120)
    assert served == 32 * 40
    assert sorted(waits)[int(0.99 * len(waits))] < 32 * 8
    shelf.placement.check()


async def test_a_read_that_hangs_stops_no_running_step(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.load("a", "b")
    await shop.manager.evict("b")
    gate = threading.Event()
    read = shop.manager._tiers._read

    def hanging(digest: str) -> PackedAdapter:
        assert gate.wait(30)
        return read(digest)

    monkeypatch.setattr(shop.manager._tiers, "_read", hanging)
    cold = asyncio.create_task(shop.lease("b"))
    await settle()
    answers = [await shop.answer("a", (1, 2, 3), shop.harness.new_engine()) for _ in range(2)]
    assert answers[0] == answers[1]
    assert not cold.done()
    gate.set()
    (await cold).release()
