"""What a server finds when it starts: names and pins are there, weights are read when they are needed."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import manylora.server.names.publishing as publishing_module
import manylora.server.residency.revision_loader as library_module
from manylora.adapters.errors import AdapterNotFound, ArtifactError
from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.registry.publish_revision import publish_revision
from manylora.adapters.registry.records import RevisionRecord, State
from manylora.adapters.registry.rows import put_change, put_history, put_revision
from manylora.adapters.registry.schema import names
from tests.support.adapter_manager import Shop, open_shop
from tests.support.engine_harness import Harness
from tests.support.tiny_models import tiny_model

MANY = 1000


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each directory was read as an artifact."""
    counted: Counter[str] = Counter()

    def counting(directory: Path, *args: object) -> object:
        counted[directory.name] += 1
        return read_artifact(directory, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(library_module, "read_artifact", counting)
    return counted


async def test_names_revisions_and_aliases_are_there_again(
    harness: Harness, tmp_path: Path, reads: Counter[str]
) -> None:
    with open_shop(harness, tmp_path) as shop:
        await shop.load("a", "b")
        await shop.manager.load("a", shop.write("a2", seed=7), replace=True)
        await shop.manager.put_alias("x", [("a", 1.0)])
        before = shop.manager.status("a")
        (await shop.lease("b")).release()
        await shop.manager.close()
    reads.clear()
    with open_shop(harness, tmp_path) as shop:
        await shop.manager.start()
        assert not reads, "nothing is read at start"
        after = shop.manager.status("a")
        assert (after.digest, after.history, after.rank) == (before.digest, before.history, before.rank)
        assert shop.manager.status("b").last_used is not None
        assert shop.pool.used_bytes == 0
        for expression in ("x", f"a@{before.history[1][:8]}", "b"):
            (await shop.lease(expression)).release()
        assert not reads, "they are kept packed"
        await shop.manager.close()


async def test_pinned_adapters_are_resident_when_start_returns(harness: Harness, tmp_path: Path) -> None:
    with open_shop(harness, tmp_path, room=2) as shop:
        await shop.load("a", "b", "c")
        await shop.manager.pin("b")
        await shop.manager.close()
    with open_shop(harness, tmp_path, room=2) as shop:
        await shop.manager.start()
        assert [r.name for r in shop.manager.list() if r.resident] == ["b"]
        await shop.manager.close()


async def test_pins_that_do_not_fit_any_more_do_not_stop_the_start(harness: Harness, tmp_path: Path) -> None:
    with open_shop(harness, tmp_path, room=2) as shop:
        await shop.load("a", "b")
        for name in "ab":
            await shop.manager.pin(name)
        await shop.manager.close()
    with open_shop(harness, tmp_path, room=1) as shop:
        await asyncio.wait_for(shop.manager.start(), 30)
        assert sum(r.resident for r in shop.manager.list()) == 1
        await shop.manager.close()


async def test_loading_again_what_is_there_copies_nothing(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``--adapter NAME=PATH`` does at every start."""
    with open_shop(harness, tmp_path) as shop:
        await shop.load("a")
        await shop.manager.close()
    with open_shop(harness, tmp_path) as shop:
        await shop.manager.start()
        monkeypatch.setattr(publishing_module, "copy_artifact", None)
        monkeypatch.setattr(shop.store, "move_in", None)
        generation, _ = shop.registry.changes(0)
        assert (await shop.manager.load("a", shop.root / "a", replace=True)).resident
        assert shop.registry.changes(0)[0] == generation
        await shop.manager.close()


async def test_what_a_dead_process_left_is_cleaned_up(harness: Harness, tmp_path: Path) -> None:
    with open_shop(harness, tmp_path) as shop:
        await shop.load("draining", "served", "lost")
        shop.registry.names.announce("loading", "s3://bucket/x")
        shop.registry.names.drain("draining")
        shutil.rmtree(shop.store.path(shop.manager.get("lost").digest))
        await shop.manager.close()
    with open_shop(harness, tmp_path) as shop:
        await shop.manager.start()
        assert [status.name for status in shop.manager.page()] == ["lost", "served"]
        assert shop.manager.status("lost").state is State.FAILED
        assert shop.store.digests() == [shop.manager.get("served").digest]
        with pytest.raises(AdapterNotFound, match="missing"):
            await shop.lease("lost")
        (await shop.lease("served")).release()
        await shop.manager.close()


async def test_an_adapter_of_another_base_is_told_as_that(harness: Harness, tmp_path: Path) -> None:
    with open_shop(harness, tmp_path) as shop:
        await shop.load("a")
        await shop.manager.close()
    other = Harness(tiny_model(tmp_path / "other", num_hidden_layers=1))
    with open_shop(other, tmp_path) as shop:
        await shop.manager.start()
        with pytest.raises(ArtifactError, match=r"published for another base model.*unexpected tensors"):
            await shop.lease("a")
        await shop.manager.close()


async def test_a_thousand_registered_adapters(harness: Harness, tmp_path: Path, reads: Counter[str]) -> None:
    """They cost a start no reading of weights, and kilobytes each while nobody asks for them."""
    with open_shop(harness, tmp_path) as shop:
        _register_many(shop)
        reads.clear()
        await shop.manager.close()
    with open_shop(harness, tmp_path) as shop:
        gc.collect()
        tracemalloc.start()
        await shop.manager.start()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert not reads
        assert len(shop.manager.list()) == MANY
        assert held / MANY < 8192
        (await shop.lease("n777")).release()
        assert reads.total() == 1
        await shop.manager.close()


def _register_many(shop: Shop) -> None:
    """One published, the others registered with facts of their own as a publication would."""
    path = shop.write("n777", seed=777)

    def validate(directory: Path) -> RevisionRecord:
        return shop.manager._library.check(directory, str(path))[0]

    def fetch(into: Path) -> None:
        shutil.copytree(path, into, dirs_exist_ok=True)

    publish_revision(shop.registry, shop.store, "n777", fetch=fetch, validate=validate, source=str(path))
    digest = shop.registry.names.get("n777").digest or ""
    facts = shop.registry.revisions.find([digest])[digest]
    with shop.registry._database.write() as (connection, generation):  # as one: a commit takes milliseconds
        for i in set(range(MANY)) - {777}:
            name, digest = f"n{i}", f"{i:064x}"
            (shop.store.root / digest).mkdir()
            for file in (CONFIG_NAME, WEIGHTS_NAME):
                (shop.store.root / digest / file).touch()
            put_revision(connection, replace(facts, digest=digest))
            row = {"name": name, "digest": digest, "state": "ready", "source": f"s3://bucket/adapters/{name}"}
            more = {"pinned": False, "created": 1.0, "updated": 1.0, "owner": ""}
            connection.execute(names.insert().values({**row, **more}))
            put_history(connection, name, digest, generation, 1)
            put_change(connection, name, generation)
