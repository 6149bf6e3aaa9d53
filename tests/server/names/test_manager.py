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
from manylora.server.metrics.labels import MIX
from manylora.server.model.pages.packed_file import PREFIX
from tests.support.adapter_manager import KEPT, RANK, ManagerSetup
from tests.support.waiting import until


async def test_loading_listing_and_unloading(setup: ManagerSetup) -> None:
    await setup.load("a", "b")
    assert [r.name for r in setup.manager.views.serving()] == ["a", "b"]
    found = setup.manager.views.get("a")
    assert (found.rank, found.modules, found.nbytes) == (RANK, len(setup.harness.base.modules), setup.unit)
    assert found.resident
    assert found.source == str(setup.root / "a")
    assert setup.store.digests() == sorted(r.digest for r in setup.manager.views.serving())
    assert setup.pool.used_bytes == 2 * setup.unit
    for name in ("a", "b"):
        assert (await setup.manager.deletions.delete(name)).bytes_freed == setup.unit
    assert setup.manager.views.serving() == []
    assert setup.pool.used_bytes == 0
    assert setup.store.digests() == []
    setup.check()


@pytest.mark.parametrize(
    ("name", "error"),
    [("", AdapterNameError), ("..", AdapterNameError), ("a+b", AdapterNameError), ("a", AdapterExists)],
)
async def test_names_that_can_not_be_registered(
    setup: ManagerSetup, name: str, error: type[Exception]
) -> None:
    await setup.load("a")
    with pytest.raises(error):
        await setup.manager.admin.load(name, setup.write("other", seed=9))
    assert [r.name for r in setup.manager.views.serving()] == ["a"]


async def test_a_failed_load_registers_nothing(setup: ManagerSetup) -> None:
    broken = setup.write("broken")
    (broken / WEIGHTS_NAME).write_bytes(b"")
    for path, error in [(setup.root / "nowhere", SourceMissing), (broken, ArtifactError)]:
        with pytest.raises(error):
            await setup.manager.admin.load("x", path)
    assert setup.manager.views.serving() == []
    assert setup.store.digests() == []
    with pytest.raises(AdapterNotFound):
        await setup.resolve("x")
    await setup.load("x")


async def test_a_failed_replacement_leaves_the_old_one(setup: ManagerSetup) -> None:
    await setup.load("a")
    before = setup.manager.views.get("a")
    broken = setup.write("broken")
    (broken / WEIGHTS_NAME).unlink()
    with pytest.raises(ArtifactError):
        await setup.manager.admin.load("a", broken, replace=True)
    assert setup.manager.views.get("a") == before


async def test_an_adapter_that_can_never_fit(setup: ManagerSetup) -> None:
    with pytest.raises(AdapterTooLarge, match="--adapter-memory"):
        await setup.manager.admin.load("huge", setup.write("huge", rank=RANK * 5))
    assert setup.store.digests() == []


async def test_a_mix_that_can_never_fit(small_setup: ManagerSetup) -> None:
    await small_setup.load("a", "b", "c")
    with pytest.raises(AdapterTooLarge):
        await small_setup.resolve("a+b+c")
    (await small_setup.hold("a*0.5+b+a*0.5")).release()  # two, however often they are named
    small_setup.check()


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("nobody", AdapterNotFound),
        ("a+nobody", AdapterNotFound),
        ("a@merged", MixError),
        ("a@0000dead", AdapterNotFound),
    ],
)
async def test_mixes_that_name_nothing(setup: ManagerSetup, expression: str, error: type[Exception]) -> None:
    await setup.load("a")
    with pytest.raises(error):
        await setup.resolve(expression)
    setup.check()


async def test_what_a_lease_says(setup: ManagerSetup) -> None:
    await setup.load("a", "b")
    a, b = (setup.manager.views.get(n).digest[:8] for n in "ab")
    for expression, served, label, weights in [
        ("a", f"a@{a}", "a", {a: 1.0}),
        (f"a@{a}", f"a@{a}", "a", {a: 1.0}),
        ("a*0.7+b*-0.3", f"a@{a}*0.7+b@{b}*-0.3", MIX, {a: 0.7, b: -0.3}),
        ("a*0.5+a*0.25", f"a@{a}*0.5+a@{a}*0.25", "a", {a: 0.75}),
        ("a*0", f"a@{a}*0", "a", {}),
    ]:
        held = await setup.hold(expression)
        assert held.served_model == served
        assert held.mix.label == label
        assert {p.digest[:8]: w for p, w in held.mix.members} == weights
        held.release()
        held.release()
    base = await setup.hold("")
    assert (base.mix.members, base.mix.digest, base.served_model) == ((), b"", "base")
    base.release()
    setup.check()


async def test_leases_are_shared_without_waiting(small_setup: ManagerSetup) -> None:
    await small_setup.load("a", "b")
    one = await small_setup.hold("a+b")
    blocked = asyncio.create_task(small_setup.hold("b"))
    two = one.share()
    one.release()
    assert small_setup.manager.residency.references.total >= 2
    two.release()
    (await blocked).release()
    small_setup.check()


async def test_more_adapters_than_room(small_setup: ManagerSetup) -> None:
    await small_setup.load(*"abcdef")
    assert sum(r.resident for r in small_setup.manager.views.serving()) == 2

    async def request(expression: str) -> None:
        held = await small_setup.hold(expression)
        await asyncio.sleep(0)
        held.release()

    mixes = [f"{x}+{y}" for x in "abcdef" for y in "abcdef"] + list("abcdef") * 3
    await asyncio.wait_for(asyncio.gather(*map(request, mixes)), 60)
    small_setup.check()
    assert small_setup.pool.used_bytes <= 2 * small_setup.unit


async def test_unloading_waits_for_what_runs(setup: ManagerSetup) -> None:
    await setup.load("a", "b")
    held = await setup.hold("a+b")
    unload = asyncio.create_task(setup.manager.deletions.delete("a"))
    await setup.until_draining("a")
    with pytest.raises(AdapterNotFound):
        await setup.resolve("a")
    with pytest.raises(AdapterNotFound):
        await setup.manager.deletions.delete("a")
    assert not unload.done()
    assert setup.pool.used_bytes == 2 * setup.unit
    held.release()
    assert (await unload).bytes_freed == setup.unit
    assert setup.pool.used_bytes == setup.unit
    setup.check()


async def test_replacing_while_running(setup: ManagerSetup) -> None:
    await setup.load("a")
    old = await setup.hold("a")
    pages = old.mix.members[0][0]
    content = setup.pool.data[pages.start :][: setup.unit // 4].clone()
    new_path = setup.write("new", seed=99)
    with pytest.raises(AdapterExists):
        await setup.manager.admin.load("a", new_path)
    await setup.manager.admin.load("a", new_path, replace=True)
    new = await setup.hold("a")
    assert new.mix.digest != old.mix.digest
    assert old.share().mix.digest == old.mix.digest
    assert [setup.pool.data[pages.start :][: setup.unit // 4].equal(content)] == [True]
    assert setup.pool.used_bytes == 2 * setup.unit
    (await setup.hold(f"a@{pages.digest[:8]}")).release()  # an earlier revision can still be named
    with pytest.raises(AdapterNotFound, match="no revision"):
        await setup.resolve("a@0000dead")


async def test_a_revision_beyond_the_history_goes_with_its_last_request(setup: ManagerSetup) -> None:
    await setup.load("a")
    first = await setup.hold("a")
    for seed in range(KEPT):
        await setup.manager.admin.load("a", setup.write("new", seed=99 + seed), replace=True)
        assert first.mix.members[0][0].digest in setup.store.digests()
    assert len(setup.manager.views.status("a").history) == KEPT
    assert len(setup.store.digests()) == KEPT + 1
    first.release()
    await until(lambda: len(setup.store.digests()) == KEPT)
    await setup.quiet()
    assert (await setup.manager.deletions.delete("a")).bytes_freed == KEPT * setup.unit
    assert setup.pool.used_bytes == 0
    assert setup.store.digests() == []
    setup.check()


async def test_replacing_by_the_same_content_changes_nothing(setup: ManagerSetup) -> None:
    await setup.load("a")
    digest = setup.manager.views.get("a").digest
    await setup.manager.admin.load("a", setup.root / "a", replace=True)
    assert setup.manager.views.get("a").digest == digest
    assert setup.store.digests() == [digest]
    (await setup.hold("a")).release()
    setup.check()


async def test_one_revision_under_two_names(setup: ManagerSetup) -> None:
    await setup.load("a")
    await setup.manager.admin.load("b", setup.root / "a")
    assert setup.pool.used_bytes == setup.unit
    one, two = await setup.hold("a"), await setup.hold("b")
    assert one.mix.digest == two.mix.digest
    assert (one.mix.label, two.mix.label) == ("a", "b")
    both = await setup.hold("a*0.5+b*0.25")
    assert [w for _, w in both.mix.members] == [0.75]
    for held in (one, two, both):
        held.release()
    assert (await setup.manager.deletions.delete("a")).bytes_freed == 0
    assert setup.manager.views.get("b").resident
    assert (await setup.manager.deletions.delete("b")).bytes_freed == setup.unit
    setup.check()


async def test_a_stored_copy_that_is_gone_fails_only_its_own_requests(small_setup: ManagerSetup) -> None:
    await small_setup.load(*"abc")
    cold = next(r for r in small_setup.manager.views.serving() if not r.resident)
    shutil.rmtree(small_setup.store.path(cold.digest))
    with pytest.raises(SourceMissing):
        await small_setup.hold(cold.name)
    warm = [r.name for r in small_setup.manager.views.serving() if r.resident]
    (await small_setup.hold("+".join(warm))).release()
    await small_setup.manager.deletions.delete(cold.name)  # nothing is left to remove: no reason to fail
    small_setup.check()


async def test_a_stored_copy_that_has_changed_is_not_served(small_setup: ManagerSetup) -> None:
    await small_setup.load(*"abc")
    cold, warm = sorted(small_setup.manager.views.serving(), key=lambda r: r.resident)[:2]
    changed = small_setup.store.path(cold.digest)
    for packed in changed.glob(f"{PREFIX}*"):  # else these would be, and they are the revision's own
        packed.unlink()
    shutil.copy(small_setup.store.path(warm.digest) / WEIGHTS_NAME, changed / WEIGHTS_NAME)
    with pytest.raises(ArtifactError, match="changed"):
        await small_setup.hold(cold.name)
    small_setup.check()
