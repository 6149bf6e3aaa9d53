"""Files that vanish and owners that die while a server runs: what it shows, and when that ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import manylora.server.names.janitor as upkeep_module
from manylora.adapters.errors import AdapterNotFound, SourceMissing, StoreError
from manylora.adapters.registry.records import State
from manylora.adapters.registry.registry import Registry
from manylora.server.names.janitor import Upkeep
from manylora.server.names.status import Residency
from tests.support.adapter_manager import open_shop
from tests.support.engine_harness import Harness
from tests.support.publishing import add_revision
from tests.support.waiting import until


async def test_files_that_vanish_are_missed_when_they_are_needed_and_welcome_when_they_are_back(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "EVERY_SECONDS", 0.01)
    with open_shop(harness, tmp_path, room=2) as shop:
        manager = shop.manager
        await manager.start()
        await shop.load("a", "b")
        path, resident = (shop.store.path(manager.get(name).digest) for name in "ab")
        await manager.evict("a")
        path.rename(tmp_path / "elsewhere")
        shutil.rmtree(resident)
        assert manager.status("a").state is State.READY
        with pytest.raises(SourceMissing, match="missing from the server's store"):
            await shop.lease("a")
        assert manager.status("a").state is State.FAILED
        assert (
            manager.status("a").error == f"the files of revision {path.name[:8]} are missing from the store"
        )
        assert manager.status("a").residency == Residency(0, 0, 0)
        with pytest.raises(AdapterNotFound, match="missing from the store"):
            await shop.lease("a")
        (await shop.lease("b")).release()
        assert manager.status("b").state is State.READY, "it is on the device, and serves"
        (tmp_path / "elsewhere").rename(path)
        await until(lambda: manager.status("a").state is State.READY)
        assert manager.status("a").error is None
        (await shop.lease("a")).release()
        shop.check()
        await manager.close()


async def test_what_a_dead_server_left_goes_while_another_runs(harness: Harness, tmp_path: Path) -> None:
    with open_shop(harness, tmp_path) as shop:
        manager = shop.manager
        await manager.start()
        await shop.load("kept", "draining")
        debris = shop.store.root / f".tmp-{'0' * 16}-x"
        debris.mkdir()
        with Registry(f"sqlite:///{tmp_path}/registry.db", owner="0" * 16) as dead:
            dead.names.announce("loading", "s3://bucket/x")
            dead.names.drain("draining")
        await until(lambda: {status.name for status in manager.page()} == {"draining", "kept", "loading"})
        await manager._upkeep.look()
        assert not debris.exists()
        await until(lambda: [status.name for status in manager.page()] == ["kept"])
        await shop.quiet()
        assert shop.store.digests() == [manager.get("kept").digest]
        generation, _ = shop.registry.changes(0)
        await manager._upkeep.look()
        assert shop.registry.changes(0)[0] == generation, "where nothing is wrong nothing is written"
        await manager.close()


async def test_what_living_servers_do_is_left_alone(harness: Harness, tmp_path: Path) -> None:
    with open_shop(harness, tmp_path) as shop, open_shop(harness, tmp_path) as twin:
        with twin.store.temporary() as temporary:
            twin.registry.names.announce("loading", "s3://bucket/x")
            await shop.manager._upkeep.look()
            assert temporary.is_dir()
            assert shop.registry.names.get("loading").state is State.LOADING
        await shop.manager.close()


async def test_a_pass_that_fails_is_told_once_and_repeated(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: Iterator[StoreError | tuple[str, ...]] = iter(
        [StoreError("down"), StoreError("down"), (), StoreError("down again"), ("a",)]
    )
    monkeypatch.setattr(upkeep_module, "ORPHANS_EVERY", 5)

    async def tend() -> tuple[str, ...]:
        outcome = next(outcomes)
        if isinstance(outcome, StoreError):
            raise outcome
        return outcome

    async def delete_orphans() -> dict[str, int]:
        return {"0123": 1}

    upkeep = Upkeep(tend, delete_orphans)
    for _ in range(5):
        await upkeep.look()
    said = [record.getMessage() for record in caplog.records]
    assert [line.rpartition(": ")[2] for line in said] == ["down", "down again", "a", "0123"]


async def test_revisions_that_no_name_has_go_unless_a_request_holds_them(
    harness: Harness, tmp_path: Path
) -> None:
    """Each server looks for itself; what a name gets back in between stays."""
    with open_shop(harness, tmp_path) as shop, open_shop(harness, tmp_path) as twin:
        await shop.manager.start()
        orphan, held, claimed = (
            add_revision(shop.store, shop.write(name, seed=i))[0] for i, name in enumerate("abc")
        )
        revision = shop.manager._holdings.revision(held)
        shop.manager._holdings.refer([revision])
        for server in (shop, twin):
            assert not await server.manager._delete_orphans()
        await shop.manager.load("c", shop.root / "c")
        assert shop.manager.get("c").digest == claimed
        assert set(await shop.manager._delete_orphans()) == {orphan}
        revision.references -= 1
        assert set(await twin.manager._delete_orphans()) == {held}
        assert shop.store.digests() == [claimed]
        await shop.manager.close()
