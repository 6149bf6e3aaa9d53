"""Names, revisions and the requests that hold them: publishing, replacing, unloading."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from manylora.adapters.errors import (
    AdapterExists,
    AdapterNameError,
    AdapterNotFound,
    AdapterTooLarge,
    ArtifactError,
    MixError,
    SourceMissing,
)
from manylora.adapters.format.files import WEIGHTS_NAME
from manylora.adapters.mix import parse_mix
from manylora.server.metrics.families import MIX
from manylora.server.model.pages.packed_file import PREFIX
from tests.support.adapter_manager import KEPT, RANK, Shop
from tests.support.waiting import settle, until


async def test_loading_listing_and_unloading(shop: Shop) -> None:
    await shop.load("a", "b")
    assert [r.name for r in shop.manager.list()] == ["a", "b"]
    found = shop.manager.get("a")
    assert (found.rank, found.modules, found.nbytes) == (RANK, len(shop.harness.base.modules), shop.unit)
    assert found.resident
    assert found.source == str(shop.root / "a")
    assert shop.store.digests() == sorted(r.digest for r in shop.manager.list())
    assert shop.pool.used_bytes == 2 * shop.unit
    for name in ("a", "b"):
        assert await shop.manager.unload(name) == shop.unit
    assert shop.manager.list() == []
    assert shop.pool.used_bytes == 0
    assert shop.store.digests() == []
    shop.check()


@pytest.mark.parametrize(
    ("name", "error"),
    [("", AdapterNameError), ("..", AdapterNameError), ("a+b", AdapterNameError), ("a", AdapterExists)],
)
async def test_names_that_can_not_be_registered(shop: Shop, name: str, error: type[Exception]) -> None:
    await shop.load("a")
    with pytest.raises(error):
        await shop.manager.load(name, shop.root / "a")
    assert [r.name for r in shop.manager.list()] == ["a"]


async def test_a_failed_load_registers_nothing(shop: Shop) -> None:
    broken = shop.write("broken")
    (broken / WEIGHTS_NAME).write_bytes(b"")
    for path, error in [(shop.root / "nowhere", SourceMissing), (broken, ArtifactError)]:
        with pytest.raises(error):
            await shop.manager.load("x", path)
    assert shop.manager.list() == []
    assert shop.store.digests() == []
    with pytest.raises(AdapterNotFound):
        await shop.manager.resolve(parse_mix("x"))
    await shop.load("x")


async def test_a_failed_replacement_leaves_the_old_one(shop: Shop) -> None:
    await shop.load("a")
    before = shop.manager.get("a")
    broken = shop.write("broken")
    (broken / WEIGHTS_NAME).unlink()
    with pytest.raises(ArtifactError):
        await shop.manager.load("a", broken, replace=True)
    assert shop.manager.get("a") == before


async def test_an_adapter_that_can_never_fit(shop: Shop) -> None:
    with pytest.raises(AdapterTooLarge, match="--adapter-memory"):
        await shop.manager.load("huge", shop.write("huge", rank=RANK * 5))
    assert shop.store.digests() == []


async def test_a_mix_that_can_never_fit(small: Shop) -> None:
    await small.load("a", "b", "c")
    with pytest.raises(AdapterTooLarge):
        await small.manager.resolve(parse_mix("a+b+c"))
    (await small.lease("a*0.5+b+a*0.5")).release()  # two, however often they are named
    small.check()


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("nobody", AdapterNotFound),
        ("a+nobody", AdapterNotFound),
        ("a@merged", MixError),
        ("a@0000dead", AdapterNotFound),
    ],
)
async def test_mixes_that_name_nothing(shop: Shop, expression: str, error: type[Exception]) -> None:
    await shop.load("a")
    with pytest.raises(error):
        await shop.manager.resolve(parse_mix(expression))
    shop.check()


async def test_what_a_lease_says(shop: Shop) -> None:
    await shop.load("a", "b")
    a, b = (shop.manager.get(n).digest[:8] for n in "ab")
    for expression, served, label, weights in [
        ("a", f"a@{a}", "a", {a: 1.0}),
        (f"a@{a}", f"a@{a}", "a", {a: 1.0}),
        ("a*0.7+b*-0.3", f"a@{a}*0.7+b@{b}*-0.3", MIX, {a: 0.7, b: -0.3}),
        ("a*0.5+a*0.25", f"a@{a}*0.5+a@{a}*0.25", "a", {a: 0.75}),
        ("a*0", f"a@{a}*0", "a", {}),
    ]:
        lease = await shop.lease(expression)
        assert lease.served_model == served
        assert lease.mix.label == label
        assert {p.digest[:8]: w for p, w in lease.mix.members} == weights
        lease.release()
        lease.release()
    base = shop.manager.base_lease()
    assert (base.mix.members, base.mix.digest, base.served_model) == ((), b"", "base")
    base.release()
    shop.check()


async def test_leases_are_shared_without_waiting(small: Shop) -> None:
    await small.load("a", "b")
    one = await small.lease("a+b")
    blocked = asyncio.create_task(small.manager.lease(await small.manager.resolve(parse_mix("b"))))
    two = one.share()
    one.release()
    assert small.manager.num_references >= 2
    two.release()
    (await blocked).release()
    small.check()


async def test_more_adapters_than_room(small: Shop) -> None:
    await small.load(*"abcdef")
    assert sum(r.resident for r in small.manager.list()) == 2

    async def request(expression: str) -> None:
        lease = await small.lease(expression)
        await settle()
        lease.release()

    mixes = [f"{x}+{y}" for x in "abcdef" for y in "abcdef"] + list("abcdef") * 3
    await asyncio.wait_for(asyncio.gather(*map(request, mixes)), 60)
    small.check()
    assert small.pool.used_bytes <= 2 * small.unit


async def test_unloading_waits_for_what_runs(shop: Shop) -> None:
    await shop.load("a", "b")
    lease = await shop.lease("a+b")
    unload = asyncio.create_task(shop.manager.unload("a"))
    await settle()
    with pytest.raises(AdapterNotFound):
        await shop.manager.resolve(parse_mix("a"))
    with pytest.raises(AdapterNotFound):
        await shop.manager.unload("a")
    assert not unload.done()
    assert shop.pool.used_bytes == 2 * shop.unit
    lease.release()
    assert await unload == shop.unit
    assert shop.pool.used_bytes == shop.unit
    shop.check()


async def test_replacing_while_running(shop: Shop) -> None:
    await shop.load("a")
    old = await shop.lease("a")
    pages = old.mix.members[0][0]
    content = shop.pool.data[pages.start :][: shop.unit // 4].clone()
    new_path = shop.write("new", seed=99)
    with pytest.raises(AdapterExists):
        await shop.manager.load("a", new_path)
    await shop.manager.load("a", new_path, replace=True)
    new = await shop.lease("a")
    assert new.mix.digest != old.mix.digest
    assert old.share().mix.digest == old.mix.digest
    assert [shop.pool.data[pages.start :][: shop.unit // 4].equal(content)] == [True]
    assert shop.pool.used_bytes == 2 * shop.unit
    (await shop.lease(f"a@{pages.digest[:8]}")).release()  # an earlier revision can still be named
    with pytest.raises(AdapterNotFound, match="no revision"):
        await shop.manager.resolve(parse_mix("a@0000dead"))


async def test_a_revision_beyond_the_history_goes_with_its_last_request(shop: Shop) -> None:
    await shop.load("a")
    first = await shop.lease("a")
    for seed in range(KEPT):
        await shop.manager.load("a", shop.write("new", seed=99 + seed), replace=True)
        assert first.mix.members[0][0].digest in shop.store.digests()
    assert len(shop.manager.status("a").history) == KEPT
    assert len(shop.store.digests()) == KEPT + 1
    first.release()
    await until(lambda: len(shop.store.digests()) == KEPT)
    await shop.quiet()
    assert await shop.manager.unload("a") == KEPT * shop.unit
    assert shop.pool.used_bytes == 0
    assert shop.store.digests() == []
    shop.check()


async def test_replacing_by_the_same_content_changes_nothing(shop: Shop) -> None:
    await shop.load("a")
    digest = shop.manager.get("a").digest
    await shop.manager.load("a", shop.root / "a", replace=True)
    assert shop.manager.get("a").digest == digest
    assert shop.store.digests() == [digest]
    (await shop.lease("a")).release()
    shop.check()


async def test_one_revision_under_two_names(shop: Shop) -> None:
    await shop.load("a")
    await shop.manager.load("b", shop.root / "a")
    assert shop.pool.used_bytes == shop.unit
    one, two = await shop.lease("a"), await shop.lease("b")
    assert one.mix.digest == two.mix.digest
    assert (one.mix.label, two.mix.label) == ("a", "b")
    both = await shop.lease("a*0.5+b*0.25")
    assert [w for _, w in both.mix.members] == [0.75]
    for lease in (one, two, both):
        lease.release()
    assert await shop.manager.unload("a") == 0
    assert shop.manager.get("b").resident
    assert await shop.manager.unload("b") == shop.unit
    shop.check()


async def test_a_stored_copy_that_is_gone_fails_only_its_own_requests(small: Shop) -> None:
    await small.load(*"abc")
    cold = next(r for r in small.manager.list() if not r.resident)
    shutil.rmtree(small.store.path(cold.digest))
    with pytest.raises(SourceMissing):
        await small.lease(cold.name)
    warm = [r.name for r in small.manager.list() if r.resident]
    (await small.lease("+".join(warm))).release()
    await small.manager.unload(cold.name)  # nothing is left to remove: no reason to fail
    small.check()


async def test_a_stored_copy_that_has_changed_is_not_served(small: Shop) -> None:
    await small.load(*"abc")
    cold, warm = sorted(small.manager.list(), key=lambda r: r.resident)[:2]
    changed = small.store.path(cold.digest)
    for packed in changed.glob(f"{PREFIX}*"):  # else these would be, and they are the revision's own
        packed.unlink()
    shutil.copy(small.store.path(warm.digest) / WEIGHTS_NAME, changed / WEIGHTS_NAME)
    with pytest.raises(ArtifactError, match="changed"):
        await small.lease(cold.name)
    small.check()
