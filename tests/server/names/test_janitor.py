"""Files that vanish and owners that die while a server runs: what it shows, and when that ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from manylora.adapters.errors import AdapterNotFound, SourceMissing, StoreError
from manylora.adapters.registry.records import State
from manylora.adapters.registry.registry import Registry
from manylora.server.names.admin.janitor import ORPHANS_EVERY, Janitor
from manylora.server.residency.residency import BytesByTier
from tests.support.adapter_manager import ManagerSetup, open_manager_setup
from tests.support.engine_harness import EngineHarness
from tests.support.publishing import add_revision
from tests.support.waiting import until


async def test_files_that_vanish_are_missed_when_they_are_needed_and_welcome_when_they_are_back(
    harness: EngineHarness, tmp_path: Path
) -> None:
    with open_manager_setup(harness, tmp_path, room=2) as setup:
        manager = setup.manager
        await manager.start()
        await setup.load("a", "b")
        path, resident = (setup.store.path(manager.views.get(name).digest) for name in "ab")
        await manager.admin.evict("a")
        path.rename(tmp_path / "elsewhere")
        shutil.rmtree(resident)
        assert manager.views.status("a").state is State.READY
        with pytest.raises(SourceMissing, match="missing from the server's store"):
            await setup.hold("a")
        assert manager.views.status("a").state is State.FAILED
        assert (
            manager.views.status("a").error
            == f"the files of revision {path.name[:8]} are missing from the store"
        )
        assert manager.views.status("a").residency == BytesByTier(0, 0, 0)
        with pytest.raises(AdapterNotFound, match="missing from the store"):
            await setup.hold("a")
        (await setup.hold("b")).release()
        assert manager.views.status("b").state is State.READY, "it is on the device, and serves"
        (tmp_path / "elsewhere").rename(path)
        await manager.janitor.clean_up()
        await until(lambda: manager.views.status("a").state is State.READY)
        assert manager.views.status("a").error is None
        (await setup.hold("a")).release()
        setup.check()
        await manager.close()


@pytest.mark.slow
async def test_what_a_dead_server_left_goes_while_another_runs(
    harness: EngineHarness, tmp_path: Path
) -> None:
    with open_manager_setup(harness, tmp_path) as setup:
        manager = setup.manager
        await manager.start()
        await setup.load("kept", "draining")
        debris = setup.store.root / f".tmp-{'0' * 16}-x"
        debris.mkdir()
        with Registry(f"sqlite:///{tmp_path}/registry.db", owner="0" * 16) as dead:
            dead.names.announce("loading", "s3://bucket/x")
            dead.names.drain("draining")
        await until(
            lambda: {status.name for status in manager.views.page()} == {"draining", "kept", "loading"}
        )
        await manager.janitor.clean_up()
        assert not debris.exists()
        await until(lambda: [status.name for status in manager.views.page()] == ["kept"])
        await setup.quiet()
        assert setup.store.digests() == [manager.views.get("kept").digest]
        generation, _ = setup.registry.changes(0)
        await manager.janitor.clean_up()
        assert setup.registry.changes(0)[0] == generation, "where nothing is wrong nothing is written"
        await manager.close()


async def test_what_living_servers_do_is_left_alone(harness: EngineHarness, tmp_path: Path) -> None:
    with open_manager_setup(harness, tmp_path) as setup, open_manager_setup(harness, tmp_path) as twin:
        with twin.store.temporary() as temporary:
            twin.registry.names.announce("loading", "s3://bucket/x")
            await setup.manager.janitor.clean_up()
            assert temporary.is_dir()
            assert setup.registry.names.get("loading").state is State.LOADING
        await setup.manager.close()


async def test_a_pass_that_fails_is_told_once_and_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcomes: Iterator[StoreError | tuple[str, ...]] = iter(
        [StoreError("down"), StoreError("down"), (), StoreError("down again"), ("a",)]
    )

    async def tend() -> tuple[str, ...]:
        outcome = next(outcomes)
        if isinstance(outcome, StoreError):
            raise outcome
        return outcome

    async def delete_orphans() -> dict[str, int]:
        return {"0123": 1}

    janitor = Janitor(tend, delete_orphans, orphans_every=5)
    for _ in range(5):
        await janitor.clean_up()
    said = [record.getMessage() for record in caplog.records]
    assert [line.rpartition(": ")[2] for line in said] == ["down", "down again", "a", "0123"]


async def look_for_orphans(setup: ManagerSetup) -> None:
    """As many passes as it takes until orphans are looked for once."""
    for _ in range(ORPHANS_EVERY):
        await setup.manager.janitor.clean_up()


async def test_revisions_that_no_name_has_go_unless_a_request_holds_them(
    harness: EngineHarness, tmp_path: Path
) -> None:
    """Each server looks for itself; what a name gets back in between stays."""
    with open_manager_setup(harness, tmp_path) as setup, open_manager_setup(harness, tmp_path) as twin:
        await setup.manager.start()
        orphan, held, claimed = (
            add_revision(setup.store, setup.write(name, seed=i))[0] for i, name in enumerate("abc")
        )
        revision = setup.manager.residency.references.revision(held)
        setup.manager.residency.references.add([revision])
        for server in (setup, twin):
            await look_for_orphans(server)
        assert set(setup.store.digests()) == {orphan, held, claimed}
        await setup.manager.admin.load("c", setup.root / "c")
        assert setup.manager.views.get("c").digest == claimed
        await look_for_orphans(setup)
        assert set(setup.store.digests()) == {held, claimed}
        revision.references -= 1
        await look_for_orphans(twin)
        assert setup.store.digests() == [claimed]
        await setup.manager.close()
