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
from manylora.adapters.mix import parse_mix
from manylora.adapters.registry.records import State
from manylora.server.names.status import Deleted, Filter
from tests.support.adapter_manager import KEPT, RANK, Shop, open_shop
from tests.support.adapter_set import prompt_of
from tests.support.engine_harness import Harness
from tests.support.waiting import until


async def publish(shop: Shop, name: str, seed: int) -> str:
    """A new revision of ``name``; its digest."""
    path = shop.write(f"{name}-{seed}", seed=seed)
    return (await shop.manager.load(name, path, replace=True)).digest


async def test_what_is_shown(shop: Shop) -> None:
    old, new = await publish(shop, "a", 1), await publish(shop, "a", 2)
    status = shop.manager.status("a")
    assert (status.state, status.digest, status.history) == (State.READY, new, (new, old))
    assert (status.rank, status.modules) == (RANK, len(shop.harness.base.modules))
    assert status.total_modules == status.modules
    assert status.residency.device == shop.unit
    assert status.residency.disk > 0
    assert (status.references, status.last_used, status.pinned, status.error) == (0, None, False, None)
    lease = await shop.lease("a")
    status = shop.manager.status("a")
    assert status.references == 1
    assert status.last_used is not None
    lease.release()
    assert [record.digest for record in await shop.manager.revisions("a")] == [new, old]
    with pytest.raises(AdapterNotFound):
        shop.manager.status("b")


async def test_pages_of_names(small: Shop) -> None:
    await small.load(*"abcde")
    page = small.manager.page
    assert [status.name for status in page(limit=2)] == ["a", "b"]
    assert [status.name for status in page(after="b", limit=2)] == ["c", "d"]
    assert [status.name for status in page(Filter(prefix="e"))] == ["e"]
    assert len(page(Filter(resident=True))) == 2
    assert len(page(Filter(resident=False))) == 3
    assert page(Filter(state=State.DRAINING)) == page(Filter(tag="none")) == page(after="e") == []


async def test_rolling_back_and_forth(shop: Shop) -> None:
    first, second, third = [await publish(shop, "a", seed) for seed in (1, 2, 3)]
    assert (await shop.manager.rollback("a")).digest == second
    assert (await shop.manager.rollback("a")).digest == third, "the one before is the one it was"
    status = await shop.manager.rollback("a", first[:6])
    assert (status.digest, set(status.history)) == (first, {first, second, third})
    assert (await shop.lease("a")).served_model == f"a@{first[:8]}"
    for revision in (second, third):
        lease = await shop.lease(f"a@{revision[:8]}")
        assert [pages.digest for pages, _ in lease.mix.members] == [revision]
        lease.release()
    with pytest.raises(AdapterNotFound, match="no revision"):
        await shop.manager.rollback("a", "0000dead")
    await shop.load("b")
    with pytest.raises(AdapterNotFound, match="no earlier"):
        await shop.manager.rollback("b")


async def test_requests_in_flight_keep_their_revision_whatever_happens_to_the_name(shop: Shop) -> None:
    first = await publish(shop, "a", 1)
    waiting = await shop.manager.resolve(parse_mix("a"))
    for seed in range(2, 3 + KEPT):
        await publish(shop, "a", seed)
    assert first not in shop.manager.status("a").history
    lease = await shop.manager.lease(waiting)
    assert lease.served_model == f"a@{first[:8]}"
    assert [pages.digest for pages, _ in lease.mix.members] == [first]
    lease.release()
    await until(lambda: first not in shop.store.digests())
    shop.check()


async def test_pinned_adapters_stay(small: Shop) -> None:
    await small.load("a", "b", "c")
    status = await small.manager.pin("a")
    assert status.pinned
    assert status.residency.device
    for name in "bcbcb":
        (await small.lease(name)).release()
        assert small.manager.get("a").resident
    with pytest.raises(AdapterInUse, match="pinned"):
        await small.manager.evict("a")
    with pytest.raises(AdapterTooLarge, match="pinned"):
        await small.lease("b+c")
    await small.manager.unpin("a")
    (await small.lease("b+c")).release()
    assert not small.manager.get("a").resident
    small.check()


async def test_no_more_is_pinned_than_fits(small: Shop) -> None:
    await small.load("a", "b", "c")
    for name in "ab":
        await small.manager.pin(name)
    with pytest.raises(AdapterTooLarge, match="pinned"):
        await small.manager.pin("c")
    assert not small.manager.status("c").pinned
    assert [small.manager.get(name).resident for name in "abc"] == [True, True, False]


async def test_a_pin_follows_the_name_to_its_new_revision(small: Shop) -> None:
    await publish(small, "a", 1)
    await small.load("b", "c")
    await small.manager.pin("a")
    new = await publish(small, "a", 2)
    await until(lambda: small.manager.get("a").resident)
    for name in "bcbc":
        (await small.lease(name)).release()
        assert small.manager.get("a").resident
    assert small.manager.get("a").digest == new
    assert small.placement_pinned() == small.unit, "the old one is not pinned any more"


async def test_pinned_pages_in_the_middle_step_aside(shop: Shop) -> None:
    """[ a | P | c | . ]: there is room for three beside P, but not in one piece."""
    await shop.load("a", "p", "c")
    await shop.manager.pin("p")
    wide = await shop.manager.load("wide", shop.write("wide", rank=RANK * 3))
    lease = await asyncio.wait_for(shop.lease("wide"), 30)
    assert wide.nbytes == 3 * shop.unit
    await until(lambda: shop.manager.get("p").resident)
    lease.release()
    shop.check()


async def test_evicting_and_prefetching(cached: Shop) -> None:
    await cached.load("a")
    assert cached.manager.status("a").residency.memory == cached.unit
    lease = await cached.lease("a")
    with pytest.raises(AdapterInUse, match="1 request"):
        await cached.manager.evict("a")
    lease.release()
    status = await cached.manager.evict("a")
    assert (status.residency.device, status.residency.memory) == (0, 0)
    assert cached.pool.used_bytes == 0
    status = await cached.manager.prefetch("a")
    assert (status.residency.device, status.residency.memory) == (cached.unit, cached.unit)
    with pytest.raises(AdapterNotFound):
        await cached.manager.prefetch("b")


async def test_prefetching_where_there_is_no_room_goes_to_memory(cached: Shop) -> None:
    await cached.load(*"abc")
    await cached.manager.evict("c")
    leases = [await cached.lease(name) for name in "ab"]
    status = await cached.manager.prefetch("c")
    assert (status.residency.device, status.residency.memory) == (0, cached.unit)
    for lease in leases:
        lease.release()
    cached.check()


async def test_prefetching_what_pins_leave_no_room_is_refused(cached: Shop) -> None:
    await cached.load(*"abc")
    await cached.manager.evict("c")
    for name in "ab":
        await cached.manager.pin(name)
    for attempt in (cached.manager.prefetch, cached.manager.pin):
        with pytest.raises(AdapterTooLarge, match="taken by pinned adapters"):
            await attempt("c")
    assert cached.manager.status("c").residency.memory == cached.unit, "as near as it can be"


async def test_prefetching_to_nowhere_is_refused(small: Shop) -> None:
    await small.load(*"abc")
    await small.manager.evict("c")
    leases = [await small.lease(name) for name in "ab"]
    with pytest.raises(AdapterInUse, match="no room for it now"):  # the host memory keeps none
        await small.manager.prefetch("c")
    for lease in leases:
        lease.release()
    assert (await small.manager.prefetch("c")).residency.device == small.unit


@pytest.mark.parametrize("action", ["pin", "prefetch"])
async def test_moving_what_has_lost_its_files(harness: Harness, tmp_path: Path, action: str) -> None:
    """It is fetched again from a remote source; otherwise it is shown as failed, with the reason."""

    def fetch(source: str, into: Path) -> str:
        shutil.copytree(tmp_path / source.rpartition("/")[2], into, dirs_exist_ok=True)
        return source

    with open_shop(harness, tmp_path, fetch=fetch) as shop:
        for name, source in {"a": "s3://bucket/a", "b": "upload"}.items():
            await shop.publish(name, shop.write(name, seed=ord(name)), source)
            await shop.manager.evict(name)
            shutil.rmtree(shop.store.path(shop.manager.get(name).digest))
        move = getattr(shop.manager, action)
        assert (await move("a")).residency.device == shop.unit
        with pytest.raises(SourceMissing, match="missing from the server's store"):
            await move("b")
        assert shop.manager.status("b").state is State.FAILED
        shop.check()


async def test_deleting_frees_every_tier(cached: Shop) -> None:
    for seed in (1, 2):
        await publish(cached, "a", seed)
    assert await cached.manager.delete("a") == Deleted(2 * cached.unit, drained=True, running=0)
    assert cached.pool.used_bytes == cached.manager._tiers.used_bytes == 0
    assert cached.store.digests() == []
    with pytest.raises(AdapterNotFound):
        await cached.manager.delete("a")


@pytest.mark.parametrize("known", [False, True])
async def test_deleting_what_is_being_published(shop: Shop, known: bool) -> None:
    """Neither what is on its way nor what waits for its turn brings the name back; what comes later does."""
    if known:
        await publish(shop, "a", 1)
    path, gate = shop.write("a-2", seed=2), threading.Event()

    def fetch(into: Path) -> None:
        assert gate.wait(30)
        shutil.copytree(path, into, dirs_exist_ok=True)

    before = [await shop.manager.begin_publish("a", fetch, source="x") for _ in range(2)]
    assert (await shop.manager.delete("a")).drained
    after = await shop.manager.begin_publish("b", fetch, source="x")
    gate.set()
    for publication in before:
        with pytest.raises(AdapterDeleted, match="deleted while it was being published"):
            await publication.done()
    await after.done()
    assert [status.name for status in shop.manager.page()] == ["b"]
    await shop.manager.delete("b")
    await shop.quiet()
    assert shop.store.digests() == []
    shop.check()


async def test_a_name_that_drains(shop: Shop) -> None:
    await shop.load("a")
    lease = await shop.lease("a")
    delete = asyncio.create_task(shop.manager.delete("a", 30.0))
    await shop.until_draining("a")
    assert [r.name for r in shop.manager.list()] == []
    with pytest.raises(AdapterNotFound, match="being deleted"):
        await shop.lease("a")
    with pytest.raises(AdapterNotFound, match="already"):
        await shop.manager.delete("a")
    delete.cancel()  # whoever asked has gone
    lease.release()
    await until(lambda: not shop.store.digests())
    with pytest.raises(AdapterNotFound):
        shop.manager.status("a")


async def test_failures_are_told_by_name_and_kept_apart(shop: Shop) -> None:
    def nothing(_: object) -> None:
        raise SourceMissing("nothing is there")

    publication = await shop.manager.begin_publish("a", nothing, source="s3://bucket/a")
    assert publication.state is State.LOADING
    with pytest.raises(AdapterNotFound, match="still being loaded"):
        await shop.lease("a")
    with pytest.raises(SourceMissing):
        await publication.done()
    assert (publication.state, publication.error) == (State.FAILED, "nothing is there")
    status = shop.manager.status("a")
    assert (status.state, status.error, status.digest) == (State.FAILED, "nothing is there", None)
    with pytest.raises(AdapterNotFound, match="could not be loaded: nothing is there"):
        await shop.lease("a")
    good = await publish(shop, "a", 1)
    with pytest.raises(SourceMissing):
        await (await shop.manager.begin_publish("a", nothing, source="s3://bucket/a")).done()
    status = shop.manager.status("a")
    assert (status.state, status.error, status.digest) == (State.READY, "nothing is there", good)
    (await shop.lease("a")).release()
    await shop.manager.delete("a")


async def test_memory_returns_when_names_go(shop: Shop) -> None:
    await shop.load(*"abcdef")
    for name in "abcdef":
        (await shop.lease(name)).release()
        await shop.manager.delete(name)
    assert shop.pool.used_bytes == 0
    assert shop.store.digests() == []
    assert shop.manager.num_references == 0
    assert not shop.manager._holdings._revisions
    assert shop.metrics.traffic("a").requests == 0


async def test_a_prompt_computed_before_a_new_revision_is_not_reused(shop: Shop) -> None:
    """The same prompt before and after: the second answer equals that of a cold engine."""
    engine = shop.harness.new_engine()
    answers = []
    for seed in (1, 2):
        await publish(shop, "a", seed)
        answers.append(await shop.answer("a", prompt_of(40, 0), engine))
    assert answers[0] != answers[1]
    await shop.manager.rollback("a")
    assert await shop.answer("a", prompt_of(40, 0), engine) == answers[0]
    await shop.manager.rollback("a")
    assert await shop.answer("a", prompt_of(40, 0), shop.harness.new_engine()) == answers[1]
