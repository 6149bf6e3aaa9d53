"""What an operator does to a name: roll back, pin, evict, prefetch, delete; and what is shown of it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import pytest

from manylora.adapters.errors import (
    AdapterDeleted,
    AdapterInUse,
    AdapterNotFound,
    AdapterTooLarge,
    SourceMissing,
)
from manylora.adapters.registry.records import State
from manylora.server.names.status import Deleted, Filter
from tests.support.adapter_manager import KEPT, RANK, ManagerSetup, open_manager_setup
from tests.support.adapter_set import prompt_of
from tests.support.engine_harness import EngineHarness
from tests.support.waiting import until


async def publish(setup: ManagerSetup, name: str, seed: int) -> str:
    """A new revision of ``name``; its digest."""
    path = setup.write(f"{name}-{seed}", seed=seed)
    return (await setup.manager.admin.load(name, path, replace=True)).digest


async def test_what_is_shown(setup: ManagerSetup) -> None:
    old, new = await publish(setup, "a", 1), await publish(setup, "a", 2)
    status = setup.manager.views.status("a")
    assert (status.state, status.digest, status.history) == (State.READY, new, (new, old))
    assert (status.rank, status.modules) == (RANK, len(setup.harness.base.modules))
    assert status.total_modules == status.modules
    assert status.residency.device == setup.unit
    assert status.residency.disk > 0
    assert (status.references, status.last_used, status.pinned, status.error) == (0, None, False, None)
    held = await setup.hold("a")
    status = setup.manager.views.status("a")
    assert status.references == 1
    assert status.last_used is not None
    held.release()
    assert [record.digest for record in await setup.manager.views.revisions("a")] == [new, old]
    with pytest.raises(AdapterNotFound):
        setup.manager.views.status("b")


async def test_pages_of_names(small_setup: ManagerSetup) -> None:
    await small_setup.load(*"abcde")
    page = small_setup.manager.views.page
    assert [status.name for status in page(limit=2)] == ["a", "b"]
    assert [status.name for status in page(after="b", limit=2)] == ["c", "d"]
    assert [status.name for status in page(Filter(prefix="e"))] == ["e"]
    assert len(page(Filter(resident=True))) == 2
    assert len(page(Filter(resident=False))) == 3
    assert page(Filter(state=State.DRAINING)) == page(Filter(tag="none")) == page(after="e") == []


async def test_rolling_back_and_forth(setup: ManagerSetup) -> None:
    first, second, third = [await publish(setup, "a", seed) for seed in (1, 2, 3)]
    assert (await setup.manager.admin.rollback("a")).digest == second
    assert (await setup.manager.admin.rollback("a")).digest == third, "the one before is the one it was"
    status = await setup.manager.admin.rollback("a", first[:6])
    assert (status.digest, set(status.history)) == (first, {first, second, third})
    assert (await setup.hold("a")).served_model == f"a@{first[:8]}"
    for revision in (second, third):
        held = await setup.hold(f"a@{revision[:8]}")
        assert [pages.digest for pages, _ in held.mix.members] == [revision]
        held.release()
    with pytest.raises(AdapterNotFound, match="no revision"):
        await setup.manager.admin.rollback("a", "0000dead")
    await setup.load("b")
    with pytest.raises(AdapterNotFound, match="no earlier"):
        await setup.manager.admin.rollback("b")


async def test_requests_in_flight_keep_their_revision_whatever_happens_to_the_name(
    setup: ManagerSetup,
) -> None:
    first = await publish(setup, "a", 1)
    held = await setup.resolve("a")
    for seed in range(2, 3 + KEPT):
        await publish(setup, "a", seed)
    assert first not in setup.manager.views.status("a").history
    await held.admit()
    assert held.served_model == f"a@{first[:8]}"
    assert [pages.digest for pages, _ in held.mix.members] == [first]
    held.release()
    await until(lambda: first not in setup.store.digests())
    setup.check()


async def test_pinned_adapters_stay(small_setup: ManagerSetup) -> None:
    await small_setup.load("a", "b", "c")
    status = await small_setup.manager.admin.pin("a")
    assert status.pinned
    assert status.residency.device
    for name in "bcbcb":
        (await small_setup.hold(name)).release()
        assert small_setup.manager.views.get("a").resident
    with pytest.raises(AdapterInUse, match="pinned"):
        await small_setup.manager.admin.evict("a")
    with pytest.raises(AdapterTooLarge, match="pinned"):
        await small_setup.hold("b+c")
    await small_setup.manager.admin.unpin("a")
    (await small_setup.hold("b+c")).release()
    assert not small_setup.manager.views.get("a").resident
    small_setup.check()


async def test_no_more_is_pinned_than_fits(small_setup: ManagerSetup) -> None:
    await small_setup.load("a", "b", "c")
    for name in "ab":
        await small_setup.manager.admin.pin(name)
    with pytest.raises(AdapterTooLarge, match="pinned"):
        await small_setup.manager.admin.pin("c")
    assert not small_setup.manager.views.status("c").pinned
    assert [small_setup.manager.views.get(name).resident for name in "abc"] == [True, True, False]


async def test_a_pin_follows_the_name_to_its_new_revision(small_setup: ManagerSetup) -> None:
    await publish(small_setup, "a", 1)
    await small_setup.load("b", "c")
    await small_setup.manager.admin.pin("a")
    new = await publish(small_setup, "a", 2)
    await until(lambda: small_setup.manager.views.get("a").resident)
    for name in "bcbc":
        (await small_setup.hold(name)).release()
        assert small_setup.manager.views.get("a").resident
    assert small_setup.manager.views.get("a").digest == new
    assert small_setup.manager.residency.device.pinned_bytes == small_setup.unit, (
        "the old one is not pinned any more"
    )


async def test_pinned_pages_in_the_middle_step_aside(setup: ManagerSetup) -> None:
    """[ a | P | c | . ]: there is room for three beside P, but not in one piece."""
    await setup.load("a", "p", "c")
    await setup.manager.admin.pin("p")
    wide = await setup.manager.admin.load("wide", setup.write("wide", rank=RANK * 3))
    held = await asyncio.wait_for(setup.hold("wide"), 30)
    assert wide.nbytes == 3 * setup.unit
    await until(lambda: setup.manager.views.get("p").resident)
    held.release()
    setup.check()


async def test_evicting_and_prefetching(cached_setup: ManagerSetup) -> None:
    await cached_setup.load("a")
    assert cached_setup.manager.views.status("a").residency.memory == cached_setup.unit
    held = await cached_setup.hold("a")
    with pytest.raises(AdapterInUse, match="1 request"):
        await cached_setup.manager.admin.evict("a")
    held.release()
    status = await cached_setup.manager.admin.evict("a")
    assert (status.residency.device, status.residency.memory) == (0, 0)
    assert cached_setup.pool.used_bytes == 0
    status = await cached_setup.manager.admin.prefetch("a")
    assert (status.residency.device, status.residency.memory) == (cached_setup.unit, cached_setup.unit)
    with pytest.raises(AdapterNotFound):
        await cached_setup.manager.admin.prefetch("b")


async def test_prefetching_where_there_is_no_room_goes_to_memory(cached_setup: ManagerSetup) -> None:
    await cached_setup.load(*"abc")
    await cached_setup.manager.admin.evict("c")
    holds = [await cached_setup.hold(name) for name in "ab"]
    status = await cached_setup.manager.admin.prefetch("c")
    assert (status.residency.device, status.residency.memory) == (0, cached_setup.unit)
    for held in holds:
        held.release()
    cached_setup.check()


async def test_prefetching_what_pins_leave_no_room_is_refused(cached_setup: ManagerSetup) -> None:
    await cached_setup.load(*"abc")
    await cached_setup.manager.admin.evict("c")
    for name in "ab":
        await cached_setup.manager.admin.pin(name)
    for attempt in (cached_setup.manager.admin.prefetch, cached_setup.manager.admin.pin):
        with pytest.raises(AdapterTooLarge, match="taken by pinned adapters"):
            await attempt("c")
    assert cached_setup.manager.views.status("c").residency.memory == cached_setup.unit, (
        "as near as it can be"
    )


async def test_prefetching_to_nowhere_is_refused(small_setup: ManagerSetup) -> None:
    await small_setup.load(*"abc")
    await small_setup.manager.admin.evict("c")
    holds = [await small_setup.hold(name) for name in "ab"]
    with pytest.raises(AdapterInUse, match="no room for it now"):  # the host memory keeps none
        await small_setup.manager.admin.prefetch("c")
    for held in holds:
        held.release()
    assert (await small_setup.manager.admin.prefetch("c")).residency.device == small_setup.unit


@pytest.mark.parametrize("action", ["pin", "prefetch"])
async def test_moving_what_has_lost_its_files(harness: EngineHarness, tmp_path: Path, action: str) -> None:
    """It is fetched again from a remote source; otherwise it is shown as failed, with the reason."""

    def fetch(source: str, into: Path) -> str:
        shutil.copytree(tmp_path / source.rpartition("/")[2], into, dirs_exist_ok=True)
        return source

    with open_manager_setup(harness, tmp_path, fetch=fetch) as setup:
        for name, source in {"a": "s3://bucket/a", "b": "upload"}.items():
            await setup.publish(name, setup.write(name, seed=ord(name)), source)
            await setup.manager.admin.evict(name)
            shutil.rmtree(setup.store.path(setup.manager.views.get(name).digest))
        move = getattr(setup.manager.admin, action)
        assert (await move("a")).residency.device == setup.unit
        with pytest.raises(SourceMissing, match="missing from the server's store"):
            await move("b")
        assert setup.manager.views.status("b").state is State.FAILED
        setup.check()


async def test_deleting_frees_every_tier(cached_setup: ManagerSetup) -> None:
    for seed in (1, 2):
        await publish(cached_setup, "a", seed)
    assert await cached_setup.manager.deletions.delete("a") == Deleted(
        2 * cached_setup.unit, drained=True, running=0
    )
    assert cached_setup.pool.used_bytes == cached_setup.manager.residency.host.used_bytes == 0
    assert cached_setup.store.digests() == []
    with pytest.raises(AdapterNotFound):
        await cached_setup.manager.deletions.delete("a")


@pytest.mark.parametrize("known", [False, True])
async def test_deleting_what_is_being_published(setup: ManagerSetup, known: bool) -> None:
    """Neither what is on its way nor what waits for its turn brings the name back; what comes later does."""
    if known:
        await publish(setup, "a", 1)
    path, gate = setup.write("a-2", seed=2), threading.Event()

    def fetch(into: Path) -> None:
        assert gate.wait(30)
        shutil.copytree(path, into, dirs_exist_ok=True)

    before = [await setup.manager.admin.begin_publish("a", fetch, source="x") for _ in range(2)]
    assert (await setup.manager.deletions.delete("a")).drained
    after = await setup.manager.admin.begin_publish("b", fetch, source="x")
    gate.set()
    for publication in before:
        with pytest.raises(AdapterDeleted, match="deleted while it was being published"):
            await publication.done()
    await after.done()
    assert [status.name for status in setup.manager.views.page()] == ["b"]
    await setup.manager.deletions.delete("b")
    await setup.quiet()
    assert setup.store.digests() == []
    setup.check()


async def test_a_name_that_drains(setup: ManagerSetup) -> None:
    await setup.load("a")
    held = await setup.hold("a")
    delete = asyncio.create_task(setup.manager.deletions.delete("a", 30.0))
    await setup.until_draining("a")
    assert [r.name for r in setup.manager.views.serving()] == []
    with pytest.raises(AdapterNotFound, match="being deleted"):
        await setup.hold("a")
    with pytest.raises(AdapterNotFound, match="already"):
        await setup.manager.deletions.delete("a")
    delete.cancel()  # whoever asked has gone
    held.release()
    await until(lambda: not setup.store.digests())
    with pytest.raises(AdapterNotFound):
        setup.manager.views.status("a")


async def test_failures_are_told_by_name_and_kept_apart(setup: ManagerSetup) -> None:
    def nothing(_: object) -> None:
        raise SourceMissing("nothing is there")

    publication = await setup.manager.admin.begin_publish("a", nothing, source="s3://bucket/a")
    assert publication.state is State.LOADING
    with pytest.raises(AdapterNotFound, match="still being loaded"):
        await setup.hold("a")
    with pytest.raises(SourceMissing):
        await publication.done()
    assert (publication.state, publication.error) == (State.FAILED, "nothing is there")
    status = setup.manager.views.status("a")
    assert (status.state, status.error, status.digest) == (State.FAILED, "nothing is there", None)
    with pytest.raises(AdapterNotFound, match="could not be loaded: nothing is there"):
        await setup.hold("a")
    good = await publish(setup, "a", 1)
    with pytest.raises(SourceMissing):
        await (await setup.manager.admin.begin_publish("a", nothing, source="s3://bucket/a")).done()
    status = setup.manager.views.status("a")
    assert (status.state, status.error, status.digest) == (State.READY, "nothing is there", good)
    (await setup.hold("a")).release()
    await setup.manager.deletions.delete("a")


async def test_memory_returns_when_names_go(setup: ManagerSetup) -> None:
    await setup.load(*"abcdef")
    for name in "abcdef":
        (await setup.hold(name)).release()
        await setup.manager.deletions.delete(name)
    assert setup.pool.used_bytes == 0
    assert setup.store.digests() == []
    assert setup.manager.residency.references.total == 0
    assert not setup.manager.residency.references.in_use()
    assert setup.metrics.requests.traffic("a").requests == 0


async def test_a_prompt_computed_before_a_new_revision_is_not_reused(setup: ManagerSetup) -> None:
    """The same prompt before and after: the second answer equals that of a cold engine."""
    engine = setup.harness.new_engine()
    answers = []
    for seed in (1, 2):
        await publish(setup, "a", seed)
        answers.append(await setup.answer("a", prompt_of(40, 0), engine))
    assert answers[0] != answers[1]
    await setup.manager.admin.rollback("a")
    assert await setup.answer("a", prompt_of(40, 0), engine) == answers[0]
    await setup.manager.admin.rollback("a")
    assert await setup.answer("a", prompt_of(40, 0), setup.harness.new_engine()) == answers[1]
