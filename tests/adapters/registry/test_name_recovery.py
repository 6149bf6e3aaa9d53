"""A registry that was lost: its revisions are kept, and get back the names that are recorded beside them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.errors import StoreError
from manylora.adapters.registry.cleanup import Recovered, UnreferencedRevisions, nameless, recover
from manylora.adapters.registry.name_recovery import find_names, recover_names
from manylora.adapters.registry.publication_record import RECORD_NAME, forget_name
from manylora.adapters.registry.records import NameRecord
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.store import RevisionStore
from tests.support.publishing import add_revision, bring_in, examine, write


@contextmanager
def opened(root: Path) -> Iterator[tuple[Registry, RevisionStore]]:
    with (
        RevisionStore(root / "store") as store,
        Registry(f"sqlite:///{root}/registry.db", owner=store.owner) as registry,
    ):
        yield registry, store


def start(root: Path) -> Recovered:
    """What a server does when it starts."""
    with opened(root) as (registry, store):
        return recover(registry, store)


def lose(root: Path, how: str) -> None:
    """Lose the registry."""
    for path in root.glob("registry.db*"):
        path.unlink()
    if how == "empty":
        (root / "registry.db").touch()


def shown(record: NameRecord) -> tuple[str, Any, Any, Any, Any, Any]:
    """What of a name can be had back."""
    return record.name, record.digest, record.state, record.tags, record.source, record.history


def pages(root: Path) -> list[tuple[str, Any, Any, Any, Any, Any]]:
    with opened(root) as (registry, _):
        return [shown(record) for record in registry.names.page()]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["empty", "missing"])
@pytest.mark.parametrize("seed", range(4))
def test_names_come_back(tmp_path: Path, how: str, seed: int) -> None:
    rng = random.Random(seed)
    sources = [write(tmp_path / f"source{n}", seed=n) for n in range(4)]
    start(tmp_path)
    with opened(tmp_path) as (registry, store):
        for _ in range(8):
            bring_in(registry, store, rng.choice("abc"), rng.choice(sources))
        facts = registry.revisions.find(store.digests())
    before = pages(tmp_path)
    lose(tmp_path, how)
    assert len(start(tmp_path).nameless) == len(facts)
    with opened(tmp_path) as (registry, store):
        planned = find_names(registry, store)
        assert registry.names.page() == []
        assert recover_names(registry, store) == planned
        assert registry.revisions.find(store.digests()) == facts
    assert pages(tmp_path) == before
    with opened(tmp_path) as (registry, store):
        assert recover_names(registry, store) == []
    assert pages(tmp_path) == before
    assert start(tmp_path).nameless == ()


def test_the_new_registry_is_used_and_nothing_is_deleted(tmp_path: Path) -> None:
    start(tmp_path)
    with opened(tmp_path) as (registry, store):
        for number, name in enumerate("ab"):
            bring_in(registry, store, name, write(tmp_path / name, seed=number))
        lost = store.digests()
    lose(tmp_path, "empty")
    start(tmp_path)
    with opened(tmp_path) as (registry, store):
        bring_in(registry, store, "a", write(tmp_path / "new", seed=7))
    for _ in range(3):
        assert start(tmp_path).nameless == tuple(lost)
    with opened(tmp_path) as (registry, store):
        orphans = UnreferencedRevisions(registry, store)
        assert orphans.delete(()) == orphans.delete(()) == {}
        found = recover_names(registry, store)
        made_up = f"a-{examine(tmp_path / 'a').digest[:8]}"
        assert {each.restored.name: each.recorded for each in found} == {"b": True, made_up: False}
        assert registry.names.get("a").source == str(tmp_path / "new"), "what is named stays as it is"
        registry.names.remove("b")
    start(tmp_path)
    with opened(tmp_path) as (registry, store):
        assert nameless(registry, store) == []
        assert len(store.digests()) == 2, "what was named and is no more is deleted as ever"


def test_a_name_that_was_deleted_stays_deleted(tmp_path: Path) -> None:
    """Though another name kept its revision."""
    start(tmp_path)
    with opened(tmp_path) as (registry, store):
        for name in "ab":
            bring_in(registry, store, name, write(tmp_path / name))
        (digest,) = store.digests()
        registry.names.remove("a")
        forget_name(store, digest, "a")
    lose(tmp_path, "missing")
    with opened(tmp_path) as (registry, store):
        assert [each.restored.name for each in recover_names(registry, store)] == ["b"]


@pytest.mark.slow
def test_a_registry_from_a_backup(tmp_path: Path) -> None:
    start(tmp_path)
    with opened(tmp_path) as (registry, store):
        bring_in(registry, store, "a", write(tmp_path / "a", seed=1))
    shutil.copy(tmp_path / "registry.db", tmp_path / "backup")
    with opened(tmp_path) as (registry, store):
        bring_in(registry, store, "b", write(tmp_path / "b", seed=2))
        later = registry.names.get("b").digest
    lose(tmp_path, "missing")
    shutil.copy(tmp_path / "backup", tmp_path / "registry.db")
    assert start(tmp_path).nameless == (later,)
    with opened(tmp_path) as (registry, store):
        assert [each.restored.name for each in recover_names(registry, store)] == ["b"]


BROKEN: list[Any] = [
    "",
    "{",
    "[]",
    "null",
    '{"version": 1}',
    "[" * 100_000,
    lambda record: record.update(version=2),
    lambda record: record.update(names=[{"name": "../x", "source": "", "tags": [], "since": 1}]),
    lambda record: record.update(names=[{"name": "a", "source": 1, "tags": [], "since": 1}]),
    lambda record: record.update(names=[{"name": "a", "source": "", "tags": ["\n"], "since": 1}]),
    lambda record: record["facts"].update(nbytes="many"),
    lambda record: record["facts"].update(rank=True),
    lambda record: record["facts"].update(digest="0" * 64),
    lambda record: record["facts"].pop("kind"),
    lambda record: record.update(generation=None),
]


@pytest.mark.slow
@pytest.mark.parametrize("broken", [None, *BROKEN], ids=range(len(BROKEN) + 1))
def test_without_a_record_a_name_is_made_up(tmp_path: Path, broken: Any) -> None:
    start(tmp_path)
    with opened(tmp_path) as (registry, store):
        bring_in(registry, store, "a", write(tmp_path / "a"))
        (digest,) = store.digests()
        path = store.path(digest) / RECORD_NAME
        if broken is None:
            path.unlink()
        elif isinstance(broken, str):
            path.write_text(broken)
        else:
            content = json.loads(path.read_text())
            broken(content)
            path.write_text(json.dumps(content))
    lose(tmp_path, "missing")
    start(tmp_path)
    with opened(tmp_path) as (registry, store):
        (found,) = recover_names(registry, store)
        assert not found.recorded
        record = registry.names.get(f"recovered-{digest[:8]}")
        facts = registry.revisions.find([digest])[digest]
    assert record.digest == digest
    assert (facts.rank, facts.modules, facts.kind) == (8, 2, "LORA")


def test_refused_while_a_server_uses_the_store(tmp_path: Path) -> None:
    start(tmp_path)
    with opened(tmp_path) as (registry, store):
        bring_in(registry, store, "a", write(tmp_path / "a"))
        with RevisionStore(store.root), pytest.raises(StoreError, match="stop it first"):
            recover_names(registry, store)
        assert recover_names(registry, store) == []


def test_refused_for_the_store_of_another_registry(tmp_path: Path) -> None:
    start(tmp_path)
    with RevisionStore(tmp_path / "other") as other:
        add_revision(other, write(tmp_path / "a"))
        with Registry(f"sqlite:///{tmp_path}/registry.db") as registry:
            with pytest.raises(StoreError, match="another artifact directory"):
                recover_names(registry, other)
            assert registry.names.page() == []
