"""From where an adapter comes that is not on the device, and that it is read no more often than needed."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from manylora.adapters.errors import AdapterNotFound, SourceMissing
from tests.support.adapter_manager import open_shop
from tests.support.engine_harness import Harness
from tests.support.small_device_cache import Shelf
from tests.support.waiting import settle, until


def value(shelf: Shelf, name: str, **labels: str) -> float:
    found = shelf.metrics.registry.get_sample_value(f"manylora_{name}", labels)
    assert found is not None
    return found


async def test_what_was_evicted_comes_back_from_memory() -> None:
    shelf = Shelf(1, memory=2)
    a, b = shelf.revision("a"), shelf.revision("b")
    for one in (a, b, a, b):
        await shelf.placement.acquire([one])
        assert shelf.intact(one)
        shelf.placement.release([one])
    assert shelf.reads == {"a": 1, "b": 1}
    assert value(shelf, "adapter_tier_hits_total", tier="disk") == 2
    assert value(shelf, "adapter_tier_hits_total", tier="memory") == 2
    assert value(shelf, "adapter_evictions_total") == 3
    await shelf.placement.acquire([b])
    assert value(shelf, "adapter_tier_hits_total", tier="device") == 1


async def test_memory_keeps_the_most_recently_used_within_its_budget() -> None:
    shelf = Shelf(1, memory=2)
    for name in "abcb":
        await shelf.tiers.load(shelf.revision(name).digest)
        shelf.tiers.check()
    assert shelf.reads == {"a": 1, "b": 1, "c": 1}
    await shelf.tiers.load("a")
    assert shelf.reads["a"] == 2
    assert shelf.tiers.bytes_of("c") == 0, "b was used after it"
    big = shelf.revision("big", 3)
    await shelf.tiers.load(big.digest)
    assert shelf.tiers.bytes_of("big") == 0, "it alone exceeds the budget"
    assert shelf.tiers.used_bytes == 2 * shelf.revision("a").nbytes


async def test_requests_at_the_same_time_share_one_read() -> None:
    shelf = Shelf(2, memory=1)
    shelf.gate.clear()
    a = shelf.revision("a")
    crowd = [asyncio.create_task(shelf.placement.acquire([a])) for _ in range(10)]
    await until(lambda: shelf.reads["a"])
    shelf.gate.set()
    await asyncio.gather(*crowd)
    assert shelf.reads == {"a": 1}
    assert a.leases == 10


async def test_the_next_in_line_are_read_while_the_first_waits_for_room() -> None:
    shelf = Shelf(1)
    held, b, c = (shelf.revision(x) for x in ("held", "b", "c"))
    await shelf.placement.acquire([held])
    waiting = [asyncio.create_task(shelf.placement.acquire([one])) for one in (b, c)]
    await until(lambda: shelf.reads["b"] and shelf.reads["c"])
    assert not any(task.done() for task in waiting)
    shelf.placement.release([held])
    await waiting[0]
    shelf.placement.release([b])
    await waiting[1]
    assert shelf.reads == {"held": 1, "b": 1, "c": 1}


async def test_a_crowd_in_line_is_not_read_all_at_once() -> None:
    shelf = Shelf(1)
    held = shelf.revision("held")
    await shelf.placement.acquire([held])
    crowd = [shelf.revision(f"r{i}") for i in range(20)]
    tasks = [asyncio.create_task(shelf.placement.acquire([one])) for one in crowd]
    await until(lambda: shelf.reads.total() >= 5)
    await settle()
    assert shelf.reads.total() == 5, "the first four, and what is held"
    shelf.placement.release([held])
    for task, one in zip(tasks, crowd, strict=True):
        await task
        shelf.placement.release([one])
    assert set(shelf.reads.values()) == {1}


async def test_dropped_while_it_is_read() -> None:
    shelf = Shelf(1, memory=4)
    shelf.gate.clear()
    load = shelf.tiers.load(shelf.revision("a").digest)
    await until(lambda: shelf.reads["a"])
    shelf.tiers.drop("a")
    shelf.gate.set()
    await load
    assert shelf.tiers.used_bytes == 0


async def test_files_that_vanished_are_fetched_again(harness: Harness, tmp_path: Path) -> None:
    """From a remote source, by one fetch for everybody, while others are served."""
    fetched: list[str] = []

    def fetch(source: str, into: Path) -> str:
        fetched.append(source)
        shutil.copytree(tmp_path / source.rpartition("/")[2], into, dirs_exist_ok=True)
        return source

    with open_shop(harness, tmp_path, room=2, fetch=fetch) as shop:
        for name in "abc":
            path = shop.write(name, seed=ord(name))
            await shop.publish(name, path, f"s3://bucket/{name}")
        fetched.clear()
        cold = next(r for r in shop.manager.list() if not r.resident)
        shutil.rmtree(shop.store.path(cold.digest))
        for lease in await asyncio.gather(*(shop.lease(cold.name) for _ in range(5))):
            lease.release()
        assert fetched == [f"s3://bucket/{cold.name}"]
        assert cold.digest in shop.store.digests()
        hits = shop.metrics.registry.get_sample_value("manylora_adapter_tier_hits_total", {"tier": "remote"})
        assert hits == 1
        shop.check()


async def test_a_source_that_has_something_else_now(harness: Harness, tmp_path: Path) -> None:
    with open_shop(harness, tmp_path, room=1) as made:
        other = made.write("other", seed=9)

    def fetch(source: str, into: Path) -> str:
        shutil.copytree(other, into, dirs_exist_ok=True)
        return source

    with open_shop(harness, tmp_path, room=1, fetch=fetch) as shop:
        path = shop.write("a", seed=1)
        await shop.publish("a", path, "s3://bucket/a")
        digest = shop.manager.get("a").digest
        await shop.manager.evict("a")
        shutil.rmtree(shop.store.path(digest))
        with pytest.raises(SourceMissing, match="others now"):
            await shop.lease("a")
        assert shop.store.digests() == []
        await shop.manager.delete("a")
        shop.check()


async def test_deleted_while_it_waits_for_its_files(harness: Harness, tmp_path: Path) -> None:
    """As another server may do it: the name goes, and the files with it."""
    with open_shop(harness, tmp_path, room=1) as shop:
        await shop.load("a", "b")
        cold = next(r for r in shop.manager.list() if not r.resident)
        shop.registry.names.remove(cold.name)
        shutil.rmtree(shop.store.path(cold.digest))
        with pytest.raises(AdapterNotFound, match="deleted"):
            await shop.lease(cold.name)
        shop.check()
