"""Gauges say how things are when they are asked for, also where nothing has happened since they changed."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable

import pytest

from manylora.adapters.errors import AdapterError
from manylora.adapters.registry.records import State
from manylora.server.engine.sequence import Sequence
from manylora.server.metrics.metrics import Metrics
from tests.support.adapter_manager import ManagerSetup
from tests.support.engine_harness import EngineHarness


def gauge(metrics: Metrics, name: str) -> float:
    found = metrics.registry.get_sample_value(f"manylora_{name}")
    assert found is not None
    return found


def of_engine(metrics: Metrics) -> dict[str, float]:
    names = ("requests_running", "requests_waiting", "kv_cache_used_blocks")
    return {name: gauge(metrics, name) for name in names}


NOTHING = {"requests_running": 0.0, "requests_waiting": 0.0, "kv_cache_used_blocks": 0.0}


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_last_abort_leaves_nothing(harness: EngineHarness, steps: int) -> None:
    engine = harness.new_engine()
    sequences = [harness.sequence(range(20 + n), max_tokens=300) for n in range(3)]
    for sequence in sequences:
        engine.add(sequence)
    for _ in range(steps):
        engine.step()
    assert of_engine(harness.metrics) != NOTHING
    for sequence in sequences:
        sequence.abort_requested = True
    engine.step()  # it drops them, and has nothing to compute
    assert of_engine(harness.metrics) == NOTHING


def test_a_step_that_fails_leaves_nothing(harness: EngineHarness) -> None:
    engine = harness.new_engine()
    engine.add(harness.sequence(range(20), max_tokens=300))
    engine.step()
    engine.fail_all("broken")
    assert of_engine(harness.metrics) == NOTHING


@pytest.mark.parametrize("seed", range(5))
def test_gauges_of_the_engine_are_what_is(harness: EngineHarness, seed: int) -> None:
    rng = random.Random(seed)
    engine = harness.new_engine()
    opened: list[Sequence] = []
    for _ in range(60):
        match rng.randrange(4):
            case 0:
                opened.append(harness.sequence(range(rng.randint(1, 60)), max_tokens=rng.randint(1, 30)))
                engine.add(opened[-1])
            case 1 if opened:
                rng.choice(opened).abort_requested = True
            case _:
                engine.step()
        assert of_engine(harness.metrics) == {
            "requests_running": len(engine.scheduler.running),
            "requests_waiting": len(engine.scheduler.waiting),
            "kv_cache_used_blocks": engine.blocks.num_used,
        }
    assert gauge(harness.metrics, "kv_cache_blocks") == engine.blocks.num_blocks


def assert_true(setup: ManagerSetup) -> None:
    """Assert that the gauges of adapters say what the parts say."""
    manager, metrics = setup.manager, setup.metrics
    statuses = manager.views.page(limit=1000)
    assert gauge(metrics, "adapters_registered") == sum(s.state is State.READY for s in statuses)
    assert gauge(metrics, "adapters_resident_bytes") == setup.pool.used_bytes
    assert gauge(metrics, "adapters_resident") == manager.residency.device.num_resident
    assert gauge(metrics, "adapters_memory_bytes") == manager.residency.host.used_bytes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_gauges_of_adapters_are_what_is(cached_setup: ManagerSetup, seed: int) -> None:
    """Also after what no administrator asked for: cold loads, and those that they drive out."""
    setup, rng = cached_setup, random.Random(seed)
    manager, names = setup.manager, list("abcde")

    async def request(name: str) -> None:
        (await setup.hold(name)).release()

    actions: list[Callable[[str], object]] = [
        setup.load,
        request,
        manager.admin.evict,
        manager.admin.prefetch,
        manager.deletions.delete,
    ]
    await setup.load(*names)
    for _ in range(40):
        action = rng.choice(actions)
        try:
            result = action(rng.choice(names))
            assert asyncio.iscoroutine(result)
            await result
        except AdapterError:  # not there, or there already
            pass
        assert_true(setup)


async def test_a_draining_name_can_not_be_requested(setup: ManagerSetup) -> None:
    await setup.load("a", "b")
    held = await setup.hold("a")
    deletion = asyncio.create_task(setup.manager.deletions.delete("a"))
    await setup.until_draining("a")
    assert gauge(setup.metrics, "adapters_registered") == 1
    held.release()
    await deletion
    assert_true(setup)


@pytest.mark.slow
@pytest.mark.sweep  # a minute of processor time
async def test_scrapes_from_threads_while_everything_moves(cached_setup: ManagerSetup) -> None:
    setup = cached_setup
    done, faults = threading.Event(), list[BaseException]()

    def scrape() -> None:
        try:
            while not done.is_set():
                setup.metrics.exposition()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=scrape) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            await setup.load(*"abcd")
            for name in "abcd":
                (await setup.hold(name)).release()
                await setup.manager.deletions.delete(name)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not faults
