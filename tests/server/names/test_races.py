"""Loads, unloads, replacements and requests that meet in the middle of each other."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest

import manylora.server.names.admin as lifecycle_module
from manylora.adapters.errors import AdapterDeleted, AdapterNotFound
from manylora.adapters.format.files import WEIGHTS_NAME
from manylora.server.names.manager import AdapterManager
from manylora.server.names.publishing import copy
from manylora.server.names.status import Deleted
from tests.support.adapter_manager import Shop, open_shop
from tests.support.engine_harness import Harness
from tests.support.waiting import settle, until


def stop_writing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Copies to the device announce themselves with the first event and wait for the second."""
    begun, proceed = threading.Event(), threading.Event()
    write = shop.pool.write

    def slow(*args: object) -> None:
        begun.set()
        assert proceed.wait(30)
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shop.pool, "write", slow)
    return begun, proceed


async def test_an_unload_that_takes_too_long_is_finished_later(shop: Shop) -> None:
    await shop.load("a")
    lease = await shop.lease("a")
    assert await shop.manager.delete("a", 0.0) == Deleted(0, drained=False, running=1)
    assert shop.pool.used_bytes == shop.unit
    lease.release()
    await until(lambda: not shop.store.digests())
    assert shop.pool.used_bytes == 0


async def test_published_again_while_draining(shop: Shop) -> None:
    await shop.load("a")
    digest = shop.manager.get("a").digest
    lease = await shop.lease("a")
    unload = asyncio.create_task(shop.manager.unload("a"))
    await shop.until_draining("a")
    await shop.manager.load("a", shop.root / "a")
    lease.release()
    assert await unload == 0
    assert shop.manager.get("a").resident
    (await shop.lease(f"a@{digest[:8]}")).release()
    assert await shop.manager.unload("a") == shop.unit
    shop.check()


async def test_requested_and_unloaded_again_while_draining(shop: Shop) -> None:
    """The second unload has nothing to do with the first, nor with the requests that it was for."""
    await shop.load("a")
    lease = await shop.lease("a")
    first = asyncio.create_task(shop.manager.unload("a"))
    await shop.until_draining("a")
    await shop.manager.load("a", shop.root / "a")
    assert await first == 0, "it serves again"
    lease.release()
    again = await shop.lease("a")
    second = asyncio.create_task(shop.manager.unload("a"))
    await shop.until_draining("a")
    assert not second.done()
    again.release()
    assert await second == shop.unit
    assert shop.pool.used_bytes == 0
    shop.check()


async def test_a_source_that_changes_while_it_is_read(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is served is what was checked: the copy, which nobody else can change."""
    source, other = shop.write("a", seed=1), shop.write("other", seed=2)

    def swap_after_copying(directory: Path, into: Path) -> None:
        copy(directory, into)
        shutil.copy(other / WEIGHTS_NAME, directory / WEIGHTS_NAME)

    monkeypatch.setattr(lifecycle_module, "copy", swap_after_copying)
    await shop.manager.load("a", source)
    await shop.manager.evict("a")
    (await shop.lease("a")).release()
    assert shop.store.digests() == [shop.manager.get("a").digest]


async def test_a_cancelled_load_is_seen_through(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, proceed = stop_writing(shop, monkeypatch)
    load = asyncio.create_task(shop.load("a"))
    await until(begun.is_set)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    proceed.set()
    await until(lambda: shop.manager.get("a").resident)
    (await shop.lease("a")).release()
    assert await shop.manager.unload("a") == shop.unit
    shop.check()


async def test_unloaded_while_it_comes_in(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, proceed = stop_writing(shop, monkeypatch)
    load = asyncio.create_task(shop.manager.load("a", shop.write("a")))
    await until(begun.is_set)
    unload = asyncio.create_task(shop.manager.unload("a"))
    await settle()
    proceed.set()
    assert (await load).name == "a"
    assert await unload == shop.unit
    assert shop.pool.used_bytes == 0
    shop.check()


async def test_cancelled_while_its_adapter_comes_in_and_unloaded(
    small: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client leaves and the operator unloads while the pages are being copied."""
    await small.load(*"abc")
    cold = next(r for r in small.manager.list() if not r.resident)
    before = small.pool.used_bytes
    begun, proceed = stop_writing(small, monkeypatch)
    request = asyncio.create_task(small.lease(cold.name))
    await until(begun.is_set)
    unload = asyncio.create_task(small.manager.unload(cold.name))
    await settle()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await settle()
    proceed.set()
    assert await unload == small.unit
    assert small.pool.used_bytes == before - small.unit
    assert cold.digest not in small.store.digests()
    small.check()


async def test_waiting_requests_outlive_the_name(small: Shop) -> None:
    """A request that resolved before the unload still runs, though it has to wait for room."""
    await small.load(*"abc")
    held = await small.lease("+".join(r.name for r in small.manager.list() if r.resident))
    cold = next(r.name for r in small.manager.list() if not r.resident)
    request = asyncio.create_task(small.lease(cold))
    await settle()
    unload = asyncio.create_task(small.manager.unload(cold))
    await settle()
    held.release()
    lease = await request
    lease.release()
    assert await unload == small.unit
    small.check()


async def test_closing_with_an_unload_that_waits(shop: Shop) -> None:
    await shop.load("a")
    lease = await shop.lease("a")
    unload = asyncio.create_task(shop.manager.unload("a"))
    await settle()
    await shop.manager.close()
    assert isinstance((await asyncio.gather(unload, return_exceptions=True))[0], BaseException | int)
    lease.release()


@pytest.mark.parametrize("seed", range(3))
async def test_a_zipf_crowd_on_a_small_pool(harness: Harness, tmp_path: Path, seed: int) -> None:
    """Sixteen adapters, room for three: 150 requests, most for the same few, some cancelled; some of the
    adapters are replaced or unloaded meanwhile. Everyone is served or told that the adapter is gone."""
    rng = random.Random(seed)
    with open_shop(harness, tmp_path, room=3) as shop:
        names = [f"n{i}" for i in range(16)]
        await shop.load(*names)
        outcomes = await asyncio.wait_for(_crowd(shop.manager, names, rng, shop), 120)
        assert outcomes.count("served") > 75
        assert set(outcomes) <= {"served", "gone", "cancelled"}
        await shop.quiet()
        shop.check()
        for registered in shop.manager.list():
            await shop.manager.unload(registered.name)
        assert shop.pool.used_bytes == 0
        assert shop.store.digests() == []


async def _crowd(manager: AdapterManager, names: list[str], rng: random.Random, shop: Shop) -> list[str]:
    weights = [1 / (i + 1) for i in range(len(names))]

    async def request() -> str:
        terms = set(rng.choices(names, weights, k=rng.choice([1, 1, 2, 3])))
        try:
            lease = await shop.lease("+".join(sorted(terms)))
        except AdapterNotFound:
            return "gone"
        except asyncio.CancelledError:
            return "cancelled"
        try:
            for _ in range(rng.randint(0, 4)):
                await asyncio.sleep(0)
            return "served"
        except asyncio.CancelledError:
            return "cancelled"
        finally:
            lease.release()

    tasks = []
    for i in range(150):
        tasks.append(asyncio.create_task(request()))
        await asyncio.sleep(0)
        if i % 9 == 0:
            rng.choice(tasks).cancel()
        if i % 25 == 10:
            tasks.append(asyncio.create_task(_unload(manager, rng.choice(names[6:]))))
        if i % 25 == 20:
            tasks.append(asyncio.create_task(_replace(shop, rng.choice(names), seed=1000 + i)))
    return [r for r in await asyncio.gather(*tasks) if r != "changed"]


async def _unload(manager: AdapterManager, name: str) -> str:
    with suppress(AdapterNotFound, asyncio.CancelledError):
        await manager.unload(name)
    return "changed"


async def _replace(shop: Shop, name: str, seed: int) -> str:
    with suppress(AdapterDeleted, asyncio.CancelledError):
        await shop.manager.load(name, shop.write(f"replacement-{seed}", seed=seed), replace=True)
    return "changed"
