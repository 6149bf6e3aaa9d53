"""Registry and store on a file system that is filled to its last block: what needs space is told so, and
whatever frees space works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from manylora.adapters.errors import DiskFull, StoreError
from manylora.adapters.registry.cleanup import delete_unreferenced, recover
from manylora.adapters.registry.publish_revision import publish_revision
from manylora.adapters.registry.records import State
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.copying import copy_artifact
from manylora.adapters.store.store import RevisionStore
from tests.support.publishing import examine, write
from tests.support.small_disk import BLOCK, KINDS, SmallDisk, small_disk


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path, request.param) as mounted:
        yield mounted


@contextmanager
def server(disk: SmallDisk) -> Iterator[tuple[Registry, RevisionStore]]:
    """A registry and a store on the disk, as a server opens them when it starts."""
    with (
        RevisionStore(disk.root / "store") as store,
        Registry(f"sqlite:///{disk.root}/registry.db", owner=store.owner) as registry,
    ):
        recover(registry, store)
        yield registry, store


def bring_in(registry: Registry, store: RevisionStore, name: str, source: Path) -> None:
    """Publish the adapter at ``source``."""

    def fetch(into: Path) -> None:
        copy_artifact(source, into)

    publish_revision(registry, store, name, fetch=fetch, validate=examine, source=str(source))


def delete(registry: Registry, store: RevisionStore, name: str) -> None:
    """Delete a name as a server does."""
    registry.names.drain(name)
    before = registry.names.remove(name, state=State.DRAINING)
    assert delete_unreferenced(registry, store, before.history) > 0


def leftovers(store: RevisionStore) -> list[str]:
    """What lies in the store beside revisions and the files of whoever has it open."""
    known = {".lock", ".identity", f".live-{store.owner}", *store.digests()}
    return [path.name for path in store.root.iterdir() if path.name not in known]


def test_everything_can_be_deleted(disk: SmallDisk, tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(6)]
    with server(disk) as (registry, store):
        for seed, name in enumerate(names):
            bring_in(registry, store, name, write(tmp_path / name, seed=seed))
        for name in names:  # whatever was freed is taken again at once
            disk.fill()
            assert disk.is_full
            delete(registry, store, name)
            assert not leftovers(store)
        assert not store.digests()
        assert not registry.names.page()


def test_what_needs_space_is_refused_and_nothing_stays(disk: SmallDisk, tmp_path: Path) -> None:
    with server(disk) as (registry, store):
        bring_in(registry, store, "a", write(tmp_path / "a"))
        disk.fill()
        with pytest.raises(DiskFull):
            bring_in(registry, store, "b", write(tmp_path / "b", seed=1))
        with pytest.raises(DiskFull):
            bring_in(registry, store, "a", write(tmp_path / "c", seed=2))
        assert not leftovers(store)
        assert registry.names.get("a").state is State.READY
        delete(registry, store, "a")
        disk.empty()
        bring_in(registry, store, "b", tmp_path / "b")
        assert registry.names.get("b").state is State.READY


@pytest.mark.slow
def test_publishing_at_every_amount_of_room(disk: SmallDisk, tmp_path: Path) -> None:
    """Each write of a publication is the one that fails for some amount of room."""
    source = write(tmp_path / "a")
    outcomes = []
    for blocks in range(40):
        with server(disk) as (registry, store):
            disk.fill(blocks * BLOCK)
            try:
                bring_in(registry, store, "a", source)
                outcomes.append("published")
            except DiskFull:
                outcomes.append("refused")
            found = {record.name: record for record in registry.names.page()}
            if outcomes[-1] == "published":
                assert found["a"].state is State.READY
                delete(registry, store, "a")
            elif "a" in found:  # it says why, and is not for ever being loaded
                assert found["a"].state is State.FAILED
                registry.names.remove("a")
            delete_unreferenced(registry, store, store.digests())
            assert not store.digests()
            assert not leftovers(store)
        disk.empty()
    assert set(outcomes) == {"published", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_server_starts_on_a_full_disk_and_frees_it(disk: SmallDisk, tmp_path: Path, killed: bool) -> None:
    with server(disk) as (registry, store):
        for seed, name in enumerate("ab"):
            bring_in(registry, store, name, write(tmp_path / name, seed=seed))
        if killed:  # the log and its index are left behind
            registry.names.drain("a")
            disk.fill()
            copies = {path.name: path.read_bytes() for path in disk.root.glob("registry.db-*")}
    if killed:
        disk.empty()
        for name, content in copies.items():
            (disk.root / name).write_bytes(content)
    disk.fill()
    assert disk.is_full
    with server(disk) as (registry, store):
        for record in registry.names.page():
            delete(registry, store, record.name)
        assert not store.digests()


def test_the_reserve_comes_back_when_there_is_room(disk: SmallDisk, tmp_path: Path) -> None:
    reserve = disk.root / "registry.db-reserve"
    with server(disk) as (registry, store):
        assert reserve.exists()
        bring_in(registry, store, "a", write(tmp_path / "a"))
        for _ in range(40):  # whoever takes what the reserve gave up
            disk.fill()
            registry.names.fail("a", "no room")
        assert registry.names.get("a").error == "no room"
        disk.empty()
        registry.names.fail("a", "again")
        assert reserve.exists()


def test_deleting_needs_no_reserve_once_there_is_a_log(disk: SmallDisk, tmp_path: Path) -> None:
    with server(disk) as (registry, store):
        for seed, name in enumerate("abc"):
            bring_in(registry, store, name, write(tmp_path / name, seed=seed))
        (disk.root / "registry.db-reserve").unlink()
        disk.fill()
        for name in "abc":
            delete(registry, store, name)
            with suppress(StoreError):
                disk.fill()
        assert not store.digests()
