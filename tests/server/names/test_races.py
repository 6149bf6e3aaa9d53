"""Loads, unloads, replacements and requests that meet in the middle of each other."""

from __future__ import annotations

import asyncio
import random
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest

import manylora.server.names.admin.adapter_admin as lifecycle_module
from manylora.adapters.errors import AdapterDeleted, AdapterNotFound
from manylora.adapters.format.files import WEIGHTS_NAME
from manylora.server.adapter_manager import AdapterManager
from manylora.server.names.admin.publishing import copy
from manylora.server.names.status import Deleted
from tests.support.adapter_manager import ManagerSetup, open_manager_setup
from tests.support.engine_harness import EngineHarness
from tests.support.waiting import until


def stop_writing(
    setup: ManagerSetup, monkeypatch: pytest.MonkeyPatch
) -> tuple[threading.Event, threading.Event]:
    """Copies to the device announce themselves with the first event and wait for the second."""
    begun, proceed = threading.Event(), threading.Event()
    write = setup.pool.write

    def slow(*args: object) -> None:
        begun.set()
        assert proceed.wait(30)
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(setup.pool, "write", slow)
    return begun, proceed


async def test_an_unload_that_takes_too_long_is_finished_later(setup: ManagerSetup) -> None:
    await setup.load("a")
    held = await setup.hold("a")
    assert await setup.manager.deletions.delete("a", 0.0) == Deleted(0, drained=False, running=1)
    assert setup.pool.used_bytes == setup.unit
    held.release()
    await until(lambda: not setup.store.digests())
    assert setup.pool.used_bytes == 0


async def test_published_again_while_draining(setup: ManagerSetup) -> None:
    await setup.load("a")
    digest = setup.manager.views.get("a").digest
    held = await setup.hold("a")
    unload = asyncio.create_task(setup.manager.deletions.delete("a"))
    await setup.until_draining("a")
    await setup.manager.admin.load("a", setup.root / "a")
    held.release()
    assert (await unload).bytes_freed == 0
    assert setup.manager.views.get("a").resident
    (await setup.hold(f"a@{digest[:8]}")).release()
    assert (await setup.manager.deletions.delete("a")).bytes_freed == setup.unit
    setup.check()


async def test_requested_and_unloaded_again_while_draining(setup: ManagerSetup) -> None:
    """The second unload has nothing to do with the first, nor with the requests that it was for."""
    await setup.load("a")
    held = await setup.hold("a")
    first = asyncio.create_task(setup.manager.deletions.delete("a"))
    await setup.until_draining("a")
    await setup.manager.admin.load("a", setup.root / "a")
    assert (await first).bytes_freed == 0, "it serves again"
    held.release()
    again = await setup.hold("a")
    second = asyncio.create_task(setup.manager.deletions.delete("a"))
    await setup.until_draining("a")
    assert not second.done()
    again.release()
    assert (await second).bytes_freed == setup.unit
    assert setup.pool.used_bytes == 0
    setup.check()


async def test_a_source_that_changes_while_it_is_read(
    setup: ManagerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is served is what was checked: the copy, which nobody else can change."""
    source, other = setup.write("a", seed=1), setup.write("other", seed=2)

    def swap_after_copying(directory: Path, into: Path) -> None:
        copy(directory, into)
        shutil.copy(other / WEIGHTS_NAME, directory / WEIGHTS_NAME)

    monkeypatch.setattr(lifecycle_module, "copy", swap_after_copying)
    await setup.manager.admin.load("a", source)
    await setup.manager.admin.evict("a")
    (await setup.hold("a")).release()
    assert setup.store.digests() == [setup.manager.views.get("a").digest]


async def test_a_cancelled_load_is_seen_through(setup: ManagerSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, proceed = stop_writing(setup, monkeypatch)
    load = asyncio.create_task(setup.load("a"))
    await until(begun.is_set)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    proceed.set()
    await until(lambda: setup.manager.views.get("a").resident)
    (await setup.hold("a")).release()
    assert (await setup.manager.deletions.delete("a")).bytes_freed == setup.unit
    setup.check()


async def test_unloaded_while_it_comes_in(setup: ManagerSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, proceed = stop_writing(setup, monkeypatch)
    load = asyncio.create_task(setup.manager.admin.load("a", setup.write("a")))
    await until(begun.is_set)
    unload = asyncio.create_task(setup.manager.deletions.delete("a"))
    await setup.until_draining("a")
    proceed.set()
    assert (await load).name == "a"
    assert (await unload).bytes_freed == setup.unit
    assert setup.pool.used_bytes == 0
    setup.check()


async def test_cancelled_while_its_adapter_comes_in_and_unloaded(
    small_setup: ManagerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client leaves and the operator unloads while the pages are being copied."""
    await small_setup.load(*"abc")
    cold = next(r for r in small_setup.manager.views.serving() if not r.resident)
    before = small_setup.pool.used_bytes
    begun, proceed = stop_writing(small_setup, monkeypatch)
    request = asyncio.create_task(small_setup.hold(cold.name))
    await until(begun.is_set)
    unload = asyncio.create_task(small_setup.manager.deletions.delete(cold.name))
    await small_setup.until_draining(cold.name)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    proceed.set()
    assert (await unload).bytes_freed == small_setup.unit
    assert small_setup.pool.used_bytes == before - small_setup.unit
    assert cold.digest not in small_setup.store.digests()
    small_setup.check()


async def test_waiting_requests_outlive_the_name(small_setup: ManagerSetup) -> None:
    """A request that resolved before the unload still runs, though it has to wait for room."""
    await small_setup.load(*"abc")
    held = await small_setup.hold("+".join(r.name for r in small_setup.manager.views.serving() if r.resident))
    cold = next(r.name for r in small_setup.manager.views.serving() if not r.resident)
    request = asyncio.create_task(small_setup.hold(cold))
    await until(lambda: small_setup.manager.residency.device.num_waiting)
    unload = asyncio.create_task(small_setup.manager.deletions.delete(cold))
    await small_setup.until_draining(cold)
    held.release()
    held = await request
    held.release()
    assert (await unload).bytes_freed == small_setup.unit
    small_setup.check()


async def test_closing_with_an_unload_that_waits(setup: ManagerSetup) -> None:
    await setup.load("a")
    held = await setup.hold("a")
    unload = asyncio.create_task(setup.manager.deletions.delete("a"))
    await setup.until_draining("a")
    await setup.manager.close()
    assert await unload == Deleted(0, drained=False, running=1)
    held.release()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_a_zipf_crowd_on_a_small_pool(harness: EngineHarness, tmp_path: Path, seed: int) -> None:
    """Sixteen adapters, room for three: 150 requests, most for the same few, some cancelled; some of the
    adapters are replaced or unloaded meanwhile. Everyone is served or told that the adapter is gone."""
    rng = random.Random(seed)
    with open_manager_setup(harness, tmp_path, room=3) as setup:
        names = [f"n{i}" for i in range(16)]
        await setup.load(*names)
        outcomes = await asyncio.wait_for(_crowd(setup.manager, names, rng, setup), 120)
        assert outcomes.count("served") > 75
        assert set(outcomes) <= {"served", "gone", "cancelled"}
        await setup.quiet()
        setup.check()
        for registered in setup.manager.views.serving():
            await setup.manager.deletions.delete(registered.name)
        assert setup.pool.used_bytes == 0
        assert setup.store.digests() == []


async def _crowd(
    manager: AdapterManager, names: list[str], rng: random.Random, setup: ManagerSetup
) -> list[str]:
    weights = [1 / (i + 1) for i in range(len(names))]

    async def request() -> str:
        terms = set(rng.choices(names, weights, k=rng.choice([1, 1, 2, 3])))
        try:
            held = await setup.hold("+".join(sorted(terms)))
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
            held.release()

    tasks = []
    for i in range(150):
        tasks.append(asyncio.create_task(request()))
        await asyncio.sleep(0)
        if i % 9 == 0:
            rng.choice(tasks).cancel()
        if i % 25 == 10:
            tasks.append(asyncio.create_task(_unload(manager, rng.choice(names[6:]))))
        if i % 25 == 20:
            tasks.append(asyncio.create_task(_replace(setup, rng.choice(names), seed=1000 + i)))
    return [r for r in await asyncio.gather(*tasks) if r != "changed"]


async def _unload(manager: AdapterManager, name: str) -> str:
    with suppress(AdapterNotFound, asyncio.CancelledError):
        await manager.deletions.delete(name)
    return "changed"


async def _replace(setup: ManagerSetup, name: str, seed: int) -> str:
    with suppress(AdapterDeleted, asyncio.CancelledError):
        await setup.manager.admin.load(name, setup.write(f"replacement-{seed}", seed=seed), replace=True)
    return "changed"
