"""From where an adapter comes that is not on the device, and that it is read no more often than needed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from manylora.adapters.errors import AdapterNotFound, SourceMissing
from tests.support.adapter_manager import open_manager_setup
from tests.support.engine_harness import EngineHarness
from tests.support.small_device_cache import SmallDeviceCache
from tests.support.waiting import until


def value(cache: SmallDeviceCache, name: str, **labels: str) -> float:
    found = cache.metrics.registry.get_sample_value(f"manylora_{name}", labels)
    assert found is not None
    return found


async def test_what_was_evicted_comes_back_from_memory() -> None:
    cache = SmallDeviceCache(1, memory=2)
    a, b = cache.revision("a"), cache.revision("b")
    for one in (a, b, a, b):
        await cache.device.acquire([one])
        assert cache.intact(one)
        cache.device.release([one])
    assert cache.reads == {"a": 1, "b": 1}
    assert value(cache, "adapter_tier_hits_total", tier="disk") == 2
    assert value(cache, "adapter_tier_hits_total", tier="memory") == 2
    assert value(cache, "adapter_evictions_total") == 3
    await cache.device.acquire([b])
    assert value(cache, "adapter_tier_hits_total", tier="device") == 1


async def test_memory_keeps_the_most_recently_used_within_its_budget() -> None:
    cache = SmallDeviceCache(1, memory=2)
    for name in "abcb":
        await cache.host.load(cache.revision(name).digest)
        cache.host.check()
    assert cache.reads == {"a": 1, "b": 1, "c": 1}
    await cache.host.load("a")
    assert cache.reads["a"] == 2
    assert cache.host.bytes_of("c") == 0, "b was used after it"
    big = cache.revision("big", 3)
    await cache.host.load(big.digest)
    assert cache.host.bytes_of("big") == 0, "it alone exceeds the budget"
    assert cache.host.used_bytes == 2 * cache.revision("a").nbytes


async def test_requests_at_the_same_time_share_one_read() -> None:
    cache = SmallDeviceCache(2, memory=1)
    cache.gate.clear()
    a = cache.revision("a")
    crowd = [asyncio.create_task(cache.device.acquire([a])) for _ in range(10)]
    await until(lambda: cache.reads["a"])
    cache.gate.set()
    await asyncio.gather(*crowd)
    assert cache.reads == {"a": 1}
    assert a.admitted == 10


async def test_the_next_in_line_are_read_while_the_first_waits_for_room() -> None:
    cache = SmallDeviceCache(1)
    held, b, c = (cache.revision(x) for x in ("held", "b", "c"))
    await cache.device.acquire([held])
    waiting = [asyncio.create_task(cache.device.acquire([one])) for one in (b, c)]
    await until(lambda: cache.reads["b"] and cache.reads["c"])
    assert not any(task.done() for task in waiting)
    cache.device.release([held])
    await waiting[0]
    cache.device.release([b])
    await waiting[1]
    assert cache.reads == {"held": 1, "b": 1, "c": 1}


async def test_a_crowd_that_waits_is_not_read_all_at_once() -> None:
    cache = SmallDeviceCache(1)
    held = cache.revision("held")
    await cache.device.acquire([held])
    crowd = [cache.revision(f"r{i}") for i in range(20)]
    tasks = [asyncio.create_task(cache.device.acquire([one])) for one in crowd]
    await until(lambda: cache.device.lacks_room and not cache.host.num_reading)
    assert cache.reads.total() == 5, "the first four, and what is held"
    cache.device.release([held])
    for task, one in zip(tasks, crowd, strict=True):
        await task
        cache.device.release([one])
    assert set(cache.reads.values()) == {1}


async def test_dropped_while_it_is_read() -> None:
    cache = SmallDeviceCache(1, memory=4)
    cache.gate.clear()
    load = cache.host.load(cache.revision("a").digest)
    await until(lambda: cache.reads["a"])
    cache.host.drop("a")
    cache.gate.set()
    await load
    assert cache.host.used_bytes == 0


async def test_files_that_vanished_are_fetched_again(harness: EngineHarness, tmp_path: Path) -> None:
    """From a remote source, by one fetch for everybody, while others are served."""
    fetched: list[str] = []

    def fetch(source: str, into: Path) -> str:
        fetched.append(source)
        shutil.copytree(tmp_path / source.rpartition("/")[2], into, dirs_exist_ok=True)
        return source

    with open_manager_setup(harness, tmp_path, room=2, fetch=fetch) as setup:
        for name in "abc":
            path = setup.write(name, seed=ord(name))
            await setup.publish(name, path, f"s3://bucket/{name}")
        fetched.clear()
        cold = next(r for r in setup.manager.views.serving() if not r.resident)
        shutil.rmtree(setup.store.path(cold.digest))
        for held in await asyncio.gather(*(setup.hold(cold.name) for _ in range(5))):
            held.release()
        assert fetched == [f"s3://bucket/{cold.name}"]
        assert cold.digest in setup.store.digests()
        hits = setup.metrics.registry.get_sample_value("manylora_adapter_tier_hits_total", {"tier": "remote"})
        assert hits == 1
        setup.check()


async def test_a_source_that_has_something_else_now(harness: EngineHarness, tmp_path: Path) -> None:
    with open_manager_setup(harness, tmp_path, room=1) as made:
        other = made.write("other", seed=9)

    def fetch(source: str, into: Path) -> str:
        shutil.copytree(other, into, dirs_exist_ok=True)
        return source

    with open_manager_setup(harness, tmp_path, room=1, fetch=fetch) as setup:
        path = setup.write("a", seed=1)
        await setup.publish("a", path, "s3://bucket/a")
        digest = setup.manager.views.get("a").digest
        await setup.manager.admin.evict("a")
        shutil.rmtree(setup.store.path(digest))
        with pytest.raises(SourceMissing, match="others now"):
            await setup.hold("a")
        assert setup.store.digests() == []
        await setup.manager.deletions.delete("a")
        setup.check()


async def test_deleted_while_it_waits_for_its_files(harness: EngineHarness, tmp_path: Path) -> None:
    """As another server may do it: the name goes, and the files with it."""
    with open_manager_setup(harness, tmp_path, room=1) as setup:
        await setup.load("a", "b")
        cold = next(r for r in setup.manager.views.serving() if not r.resident)
        setup.registry.remove(cold.name)
        shutil.rmtree(setup.store.path(cold.digest))
        with pytest.raises(AdapterNotFound, match="deleted"):
            await setup.hold(cold.name)
        setup.check()
