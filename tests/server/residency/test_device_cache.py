"""Room on the device: who gets it, who waits, and who is evicted."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

import manylora.server.residency.device_cache as device_cache_module
import manylora.server.residency.revision_loader as loader_module
from manylora.server.model.packed_file import read_packed
from manylora.server.model.pages import PackedAdapter
from manylora.server.residency.revision import Revision
from tests.support.adapter_manager import ManagerSetup
from tests.support.small_device_cache import SmallDeviceCache, cancel, waiting_for
from tests.support.waiting import until


async def test_a_revision_is_read_once_and_stays() -> None:
    cache = SmallDeviceCache(2)
    a = cache.revision("a")
    for _ in range(3):
        await cache.device.acquire([a])
        assert a.admitted == 1
        assert cache.intact(a)
        cache.device.release([a])
    assert cache.reads == {"a": 1}
    assert cache.device.num_resident == 1
    assert cache.device.resident_bytes == a.nbytes
    cache.device.check()


async def test_the_least_recently_used_goes() -> None:
    cache = SmallDeviceCache(2)
    a, b, c = (cache.revision(x) for x in "abc")
    for one in (a, b, a, c):
        await cache.device.acquire([one])
        cache.device.release([one])
    assert [r.pages is not None for r in (a, b, c)] == [True, False, True]


async def test_what_is_leased_is_never_evicted() -> None:
    cache = SmallDeviceCache(2)
    a, b, c = (cache.revision(x) for x in "abc")
    await cache.device.acquire([a, b])
    task = await waiting_for(cache, c)
    await until(lambda: cache.reads["c"])
    assert cache.intact(a)
    assert cache.intact(b)
    cache.device.release([a])
    await task
    assert cache.intact(b)
    assert cache.intact(c)
    assert a.pages is None


async def test_two_leases_on_one_revision() -> None:
    cache = SmallDeviceCache(1)
    a, b = cache.revision("a"), cache.revision("b")
    await cache.device.acquire([a])
    await cache.device.acquire([a])
    task = await waiting_for(cache, b)
    tries = cache.tries
    cache.device.release([a])
    await until(lambda: cache.tries > tries)
    assert not task.done()
    cache.device.release([a])
    await task


async def test_sets_are_granted_whole() -> None:
    """Room for two and mixes of two in every combination: half-granted ones would block each other."""
    cache = SmallDeviceCache(2)
    revisions = [cache.revision(x) for x in "abcd"]

    async def use(i: int, j: int) -> None:
        members = [revisions[i], revisions[j]]
        await cache.device.acquire(members)
        await asyncio.sleep(0)
        assert all(cache.intact(r) for r in members)
        cache.device.release(members)

    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    await asyncio.wait_for(asyncio.gather(*(use(i, j) for i, j in pairs * 3)), 30)
    assert not any(r.admitted for r in revisions)
    cache.device.check()


async def test_resident_sets_pass_while_others_wait_for_room() -> None:
    cache = SmallDeviceCache(2)
    a, b, c = cache.revision("a"), cache.revision("b"), cache.revision("c", 2)
    await cache.device.acquire([a])
    task = await waiting_for(cache, c)
    await cache.device.acquire([a])  # at once
    cache.device.release([a])
    cache.device.release([a])
    await task
    assert b.pages is None


async def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of requests for a resident adapter can't keep a cold one out for ever."""
    now = [100.0]
    monkeypatch.setattr(device_cache_module, "monotonic", lambda: now[0])
    cache = SmallDeviceCache(1)
    hot, cold = cache.revision("hot"), cache.revision("cold")
    await cache.device.acquire([hot])
    first = await waiting_for(cache, cold)
    await until(lambda: cache.device.lacks_room)
    now[0] += 0.2
    await cache.device.acquire([hot])
    cache.device.release([hot])
    now[0] += 0.1
    second = await waiting_for(cache, hot)  # now behind the cold one
    cache.device.release([hot])
    await first
    assert not second.done()
    cache.device.release([cold])
    await second


async def test_a_failed_read_concerns_one_set_only() -> None:
    cache = SmallDeviceCache(2)
    a, b, c = (cache.revision(x) for x in "abc")
    cache.broken.add("b")
    results = await asyncio.gather(
        *(cache.device.acquire(m) for m in ([a], [a, b], [c])), return_exceptions=True
    )
    assert results[0] is results[2] is None
    assert isinstance(results[1], OSError)
    assert (a.admitted, b.admitted, c.admitted) == (1, 0, 1)
    cache.broken.clear()
    cache.device.release([a])
    await cache.device.acquire([b])
    cache.device.check()


async def test_room_split_by_its_own_idle_member() -> None:
    """[ . | b | . ]: a set of b and one that takes two thirds fits, though not around b."""
    cache = SmallDeviceCache(3)
    a, b, big = cache.revision("a"), cache.revision("b"), cache.revision("big", 2)
    for one in (a, b):
        await cache.device.acquire([one])
        cache.device.release([one])
    cache.device.evict(a)
    await asyncio.wait_for(cache.device.acquire([b, big]), 30)
    assert cache.intact(b)
    assert cache.intact(big)
    cache.device.check()


async def test_a_new_revision_is_offered_room() -> None:
    cache = SmallDeviceCache(2)
    a, b, c = (cache.revision(x) for x in "abc")
    for one in (a, b, c):
        await cache.device.offer(one, cache.packed(one))
        assert one.admitted == 0
    assert [r.pages is not None for r in (a, b, c)] == [False, True, True]
    assert not cache.reads
    await cache.device.acquire([b, c])
    await cache.device.offer(a, cache.packed(a))
    assert a.pages is None
    await cache.device.offer(b, cache.packed(b))
    assert cache.device.resident_bytes == 2 * b.nbytes
    cache.device.check()


async def test_the_empty_set_needs_nothing() -> None:
    cache = SmallDeviceCache(1)
    await cache.device.acquire([cache.revision("a")])
    task = await waiting_for(cache, cache.revision("b"))
    await cache.device.acquire([])
    await cancel(task)


async def test_zipf_traffic_over_500_adapters_starves_nobody() -> None:
    """Room for 20: every request is served, the rare ones too, and none waits for more than its share."""
    rng = random.Random(0)
    cache = SmallDeviceCache(20, memory=40)
    revisions = [cache.revision(f"r{i}") for i in range(500)]
    weights = [1 / (i + 1) for i in range(500)]
    served, waits = 0, []

    async def request(revision: Revision) -> None:
        nonlocal served
        before = served
        await cache.device.acquire([revision])
        waits.append(served - before)  # others that were served in between
        await asyncio.sleep(0)
        assert cache.intact(revision)
        cache.device.release([revision])
        served += 1

    async def client() -> None:
        for revision in rng.choices(revisions, weights, k=40):
            await request(revision)

    await asyncio.wait_for(asyncio.gather(*(client() for _ in range(32))), 120)
    assert served == 32 * 40
    assert sorted(waits)[int(0.99 * len(waits))] < 32 * 8
    cache.device.check()


async def test_a_read_that_hangs_stops_no_running_step(
    setup: ManagerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    await setup.load("a", "b")
    await setup.manager.admin.evict("b")
    begun, gate = threading.Event(), threading.Event()

    def hanging(*args: Any) -> PackedAdapter | None:
        begun.set()
        assert gate.wait(30)
        return read_packed(*args)

    monkeypatch.setattr(loader_module, "read_packed", hanging)
    cold = asyncio.create_task(setup.hold("b"))
    await until(begun.is_set)
    answers = [await setup.answer("a", (1, 2, 3), setup.harness.new_engine()) for _ in range(2)]
    assert answers[0] == answers[1]
    assert not cold.done()
    gate.set()
    (await cold).release()
