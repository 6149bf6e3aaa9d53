"""A publication is there as a whole or not at all, whenever its process is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest

from manylora.adapters.errors import AdapterExists, ArtifactError, StoreError
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.registry.cleanup import KEEP_FAILED_SECONDS, clean_up, delete_unreferenced, recover
from manylora.adapters.registry.publication_record import RECORD_NAME
from manylora.adapters.registry.publish_revision import publish_revision
from manylora.adapters.registry.records import State
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.store import RevisionStore
from tests.support.paths import ROOT
from tests.support.publishing import STEPS, bring_in, copy_from, examine, write

pytestmark = pytest.mark.slow

KEPT = [CONFIG_NAME, WEIGHTS_NAME, "chat_template.jinja", RECORD_NAME]
Die = Callable[[str, Path, str, Path, str], None]


@pytest.fixture(scope="module")
def die() -> Iterator[Die]:
    """Publishes in a process that is killed at a step; returns when it is dead."""
    command = [sys.executable, "-W", "error", "-m", "tests.support.publishing"]
    cwd = ROOT
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd, text=True, bufsize=1
    ) as process:
        orders, answers = process.stdin, process.stdout
        assert orders is not None
        assert answers is not None

        def run(url: str, root: Path, name: str, source: Path, step: str) -> None:
            orders.write("\t".join([url, str(root), name, str(source), step]) + "\n")
            assert answers.readline() == f"{signal.SIGKILL.value}\n"

        yield run
        orders.close()
        assert process.wait() == 0


@contextmanager
def server(url: str, root: Path) -> Iterator[tuple[Registry, RevisionStore]]:
    """What a server opens when it starts."""
    with RevisionStore(root) as store, Registry(url, owner=store.owner) as registry:
        yield registry, store


def listing(root: Path) -> list[str]:
    """Every file and directory under ``root``."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def expected(store: RevisionStore, *digests: str) -> list[str]:
    revisions = [name for d in digests for name in (d, *(f"{d}/{kept}" for kept in KEPT))]
    return sorted([".identity", f".live-{store.owner}", ".lock", *revisions])


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_a_first_publication(url: str, tmp_path: Path, die: Die, step: str) -> None:
    root, source = tmp_path / "store", write(tmp_path / "one")
    die(url, root, "a", source, step)
    with server(url, root) as (registry, store):
        done = recover(registry, store)
        if step == "register":  # the transaction was over: it counts
            digest = examine(source).digest
            assert registry.names.get("a").state is State.READY
            assert registry.names.get("a").digest == examine(store.path(digest)).digest == digest
            assert listing(root) == expected(store, digest)
        else:
            assert done.unfinished == ("a",)
            assert registry.names.page() == []
            assert registry.revisions.referenced() == set()
            assert listing(root) == expected(store)
            bring_in(registry, store, "a", source)  # nothing stands in the way of another attempt
            assert registry.names.get("a").state is State.READY


@pytest.mark.parametrize("step", STEPS)
def test_killed_while_replacing(url: str, tmp_path: Path, die: Die, step: str) -> None:
    root, old, new = tmp_path / "store", write(tmp_path / "one"), write(tmp_path / "two", seed=1)
    with server(url, root) as (registry, store):
        before = bring_in(registry, store, "a", old).name
    die(url, root, "a", new, step)
    with server(url, root) as (registry, store):
        recover(registry, store)
        record = registry.names.get("a")
        assert record.state is State.READY
        digests = [examine(new).digest, examine(old).digest] if step == "register" else [before.digest]
        assert list(record.history) == digests
        assert record.digest is not None
        assert examine(store.path(record.digest)).digest == record.digest == digests[0]
        assert listing(root) == expected(store, *(digest for digest in digests if digest))
        assert recover(registry, store).freed == 0


@pytest.mark.parametrize("step", ["announce", "half", "prepare"])
def test_another_server_starts_while_one_publishes(url: str, tmp_path: Path, step: str) -> None:
    def start_another(now: str) -> None:
        if now == step:
            with server(url, tmp_path / "store") as (registry, store):
                assert recover(registry, store).unfinished == ()
                assert registry.names.get("a").state is State.LOADING

    with server(url, tmp_path / "store") as (registry, store):
        published = bring_in(registry, store, "a", write(tmp_path / "one"), start_another)
        assert published.name.state is State.READY
        assert listing(store.root) == expected(store, examine(published.directory).digest)


def test_another_server_starts_between_rename_and_registration(url: str, tmp_path: Path) -> None:
    waiting: list[Future[None]] = []

    def start_another() -> None:
        with server(url, tmp_path / "store") as (registry, store):
            assert recover(registry, store).freed == 0
            assert registry.names.get("a").state is State.READY

    def on_step(now: str) -> None:
        if now == "move in":
            waiting.append(pool.submit(start_another))
            assert not wait(waiting, timeout=0.2).done

    with server(url, tmp_path / "store") as (registry, store), ThreadPoolExecutor(1) as pool:
        published = bring_in(registry, store, "a", write(tmp_path / "one"), on_step)
        waiting[0].result()
        assert listing(store.root) == expected(store, examine(published.directory).digest)


def test_a_name_that_was_being_deleted_is_gone_after_a_kill(url: str, tmp_path: Path) -> None:
    with server(url, tmp_path / "store") as (registry, store):
        bring_in(registry, store, "a", write(tmp_path / "one"))
        with Registry(url, owner="0" * 16) as dead:  # no process holds a lock under that name
            dead.names.drain("a")
        done = recover(registry, store)
        assert done.unfinished == ("a",)
        assert done.freed > 0
        assert registry.names.page() == []
        assert store.digests() == []


def test_a_revision_that_disappears_and_comes_back(url: str, tmp_path: Path) -> None:
    with server(url, tmp_path / "store") as (registry, store):
        path = bring_in(registry, store, "a", write(tmp_path / "one")).directory
        path.rename(tmp_path / "elsewhere")
        assert recover(registry, store).files.missing == ("a",)
        record = registry.names.get("a")
        assert record.state is State.FAILED
        assert record.error == f"the files of revision {path.name[:8]} are missing from the store"
        (tmp_path / "elsewhere").rename(path)
        assert recover(registry, store).files.restored == ("a",)
        assert (registry.names.get("a").state, registry.names.get("a").error) == (State.READY, None)


def test_what_is_done_while_servers_run(url: str, tmp_path: Path) -> None:
    with server(url, tmp_path / "store") as (registry, store):
        path = bring_in(registry, store, "a", write(tmp_path / "one")).directory
        bring_in(registry, store, "b", write(tmp_path / "two", seed=1))
        path.rename(tmp_path / "elsewhere")
        registry.recovery.mark_missing("b", path.name)
        registry.recovery.mark_missing("a", path.name)
        assert [registry.names.get(name).state for name in "ab"] == [State.FAILED, State.READY]
        generation, _ = registry.changes(0)
        assert clean_up(registry, store) == ()
        assert registry.changes(generation) == (generation, []), "nothing to do, nothing written"
        (tmp_path / "elsewhere").rename(path)
        with Registry(url, owner="0" * 16) as dead:
            dead.names.announce("c", "x")
        assert clean_up(registry, store) == ("c", "a")
        assert (registry.names.get("a").state, registry.names.get("a").error) == (State.READY, None)
        assert registry.changes(generation)[1] == ["a", "c"]
        assert [record.name for record in registry.names.page()] == ["a", "b"]


def test_names_that_never_served_are_forgotten_an_hour_after_they_failed(url: str, tmp_path: Path) -> None:
    with server(url, tmp_path / "store") as (registry, store):
        registry.names.announce("fresh", "x")
        registry.names.fail("fresh", "no adapter")
        with pytest.MonkeyPatch.context() as patch:
            earlier = time.time() - KEEP_FAILED_SECONDS
            patch.setattr(time, "time", lambda: earlier)
            for name in ("old", "again"):
                registry.names.announce(name, "x")
                registry.names.fail(name, "no adapter")
            bring_in(registry, store, "served", write(tmp_path / "one"))
            registry.names.fail("served", "a later attempt")
            lost = bring_in(registry, store, "lost", write(tmp_path / "two", seed=1))
            registry.recovery.mark_missing("lost", lost.directory.name)
            lost.directory.rename(tmp_path / "elsewhere")
        registry.names.announce("again", "x")
        generation, _ = registry.changes(0)
        assert clean_up(registry, store) == ("old",)
        assert registry.changes(generation)[1] == ["old"]
        assert [record.name for record in registry.names.page()] == ["again", "fresh", "lost", "served"]


def test_a_loading_name_with_a_past_is_kept_as_failed(url: str, tmp_path: Path) -> None:
    with server(url, tmp_path / "store") as (registry, store):
        path = bring_in(registry, store, "a", write(tmp_path / "one")).directory
        path.rename(tmp_path / "elsewhere")
        recover(registry, store)
        with Registry(url, owner="0" * 16) as dead:
            dead.names.announce("a", "x")
        recover(registry, store)
        assert registry.names.get("a").state is State.FAILED
        assert registry.names.get("a").error == "the server stopped while a revision was being loaded"


def test_an_earlier_revision_that_disappears_is_forgotten(url: str, tmp_path: Path) -> None:
    with server(url, tmp_path / "store") as (registry, store):
        old = bring_in(registry, store, "a", write(tmp_path / "one")).directory
        new = bring_in(registry, store, "a", write(tmp_path / "two", seed=1)).directory
        assert store.discard([old.name], set).keys() == {old.name}
        assert recover(registry, store).files.forgotten == (old.name,)
        assert registry.names.get("a").history == (new.name,)
        assert registry.revisions.find([old.name, new.name]).keys() == {new.name}


def test_a_registry_belongs_to_one_directory(url: str, tmp_path: Path) -> None:
    with server(url, tmp_path / "store") as (registry, store):
        recover(registry, store)
        bring_in(registry, store, "a", write(tmp_path / "one"))
    with server(url, tmp_path / "other") as (registry, store):
        with pytest.raises(StoreError, match="another artifact directory"):
            recover(registry, store)
        assert registry.names.get("a").state is State.READY


def test_a_fault_is_recorded_and_leaves_nothing(url: str, tmp_path: Path) -> None:
    source = write(tmp_path / "one")
    (source / WEIGHTS_NAME).write_bytes(b"\xff" * 100)
    with server(url, tmp_path / "store") as (registry, store):
        with pytest.raises(ArtifactError) as error:
            bring_in(registry, store, "a", source)
        assert registry.names.get("a").state is State.FAILED
        assert registry.names.get("a").error == str(error.value)
        assert listing(store.root) == expected(store)

        def refuse(_: Path) -> None:
            raise RuntimeError("inside")

        with pytest.raises(RuntimeError):
            publish_revision(registry, store, "b", fetch=refuse, validate=examine, source="x")
        assert registry.names.get("b").error == "an unexpected fault"


def test_a_taken_name_is_told_before_the_download(url: str, tmp_path: Path) -> None:
    with server(url, tmp_path / "store") as (registry, store):
        bring_in(registry, store, "a", write(tmp_path / "one"))
        fetched: list[str] = []
        with pytest.raises(AdapterExists):
            bring_in(registry, store, "a", write(tmp_path / "two", seed=1), fetched.append, replace=False)
        assert fetched == ["announce"]
        assert registry.names.get("a").error is None


def test_what_falls_out_of_the_history_is_deleted(url: str, tmp_path: Path) -> None:
    with server(url, tmp_path / "store") as (registry, store):
        for seed in range(18):
            bring_in(registry, store, "a", write(tmp_path / str(seed), seed=seed))
        history = registry.names.get("a").history
        assert len(history) == 16
        assert store.digests() == sorted(history)
        bring_in(registry, store, "b", tmp_path / "17")
        past = registry.names.remove("a").history
        assert delete_unreferenced(registry, store, past) > 0
        assert store.digests() == [examine(tmp_path / "17").digest]
        assert delete_unreferenced(registry, store, []) == 0


def test_links_in_what_was_fetched_are_dropped(url: str, tmp_path: Path) -> None:
    source = write(tmp_path / "one")

    def fetch(into: Path) -> None:
        copy_from(source)(into)
        (into / "merges.txt").symlink_to("/etc/passwd")
        (into / "deeper").mkdir()

    with server(url, tmp_path / "store") as (registry, store):
        done = publish_revision(
            registry, store, "a", fetch=fetch, validate=lambda _: examine(source), source="x"
        )
        assert sorted(path.name for path in done.directory.iterdir()) == KEPT


@pytest.mark.slow
def test_the_exact_source_is_recorded_with_the_revision(url: str, tmp_path: Path) -> None:
    source = write(tmp_path / "one")

    def fetch(into: Path) -> str:
        copy_from(source)(into)
        return "hf://org/one@0123"

    with server(url, tmp_path / "store") as (registry, store):
        name = publish_revision(
            registry, store, "a", fetch=fetch, validate=examine, source="hf://org/one"
        ).name
        assert name.source == "hf://org/one"
        digest = name.history[0]
        assert registry.revisions.find([digest])[digest].source == "hf://org/one@0123"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["half", "move in"])
def test_a_living_server_cleans_up_after_a_dead_one(url: str, tmp_path: Path, die: Die, step: str) -> None:
    with server(url, tmp_path / "store") as (registry, store):
        die(url, store.root, "a", write(tmp_path / "one"), step)
        assert registry.names.get("a").state is State.LOADING
        assert recover(registry, store).unfinished == ("a",)
        assert listing(store.root) == expected(store)
