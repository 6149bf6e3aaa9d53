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

import manylora.server.residency.revision_loader as library_module
from manylora.adapters.errors import AdapterNotFound, ArtifactError
from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.registry.publish_revision import publish_revision
from manylora.adapters.registry.records import RevisionRecord, State
from manylora.adapters.registry.rows import put_change, put_history, put_revision
from manylora.adapters.registry.schema import Database, names
from tests.support.adapter_manager import ManagerSetup, open_manager_setup
from tests.support.engine_harness import EngineHarness
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
    harness: EngineHarness, tmp_path: Path, reads: Counter[str]
) -> None:
    with open_manager_setup(harness, tmp_path) as setup:
        await setup.load("a", "b")
        await setup.manager.admin.load("a", setup.write("a2", seed=7), replace=True)
        await setup.manager.aliases.put("x", [("a", 1.0)])
        before = setup.manager.views.status("a")
        (await setup.hold("b")).release()
        await setup.manager.close()
    reads.clear()
    with open_manager_setup(harness, tmp_path) as setup:
        await setup.manager.start()
        assert not reads, "nothing is read at start"
        after = setup.manager.views.status("a")
        assert (after.digest, after.history, after.rank) == (before.digest, before.history, before.rank)
        assert setup.manager.views.status("b").last_used is not None
        assert setup.pool.used_bytes == 0
        for expression in ("x", f"a@{before.history[1][:8]}", "b"):
            (await setup.hold(expression)).release()
        assert not reads, "they are kept packed"
        await setup.manager.close()


async def test_pinned_adapters_are_resident_when_start_returns(
    harness: EngineHarness, tmp_path: Path
) -> None:
    with open_manager_setup(harness, tmp_path, room=2) as setup:
        await setup.load("a", "b", "c")
        await setup.manager.admin.pin("b")
        await setup.manager.close()
    with open_manager_setup(harness, tmp_path, room=2) as setup:
        await setup.manager.start()
        assert [r.name for r in setup.manager.views.serving() if r.resident] == ["b"]
        await setup.manager.close()


async def test_pins_that_do_not_fit_any_more_do_not_stop_the_start(
    harness: EngineHarness, tmp_path: Path
) -> None:
    with open_manager_setup(harness, tmp_path, room=2) as setup:
        await setup.load("a", "b")
        for name in "ab":
            await setup.manager.admin.pin(name)
        await setup.manager.close()
    with open_manager_setup(harness, tmp_path, room=1) as setup:
        await asyncio.wait_for(setup.manager.start(), 30)
        assert sum(r.resident for r in setup.manager.views.serving()) == 1
        await setup.manager.close()


async def test_loading_again_what_is_there_copies_nothing(
    harness: EngineHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``--adapter NAME=PATH`` does at every start."""
    with open_manager_setup(harness, tmp_path) as setup:
        await setup.load("a")
        await setup.manager.close()
    with open_manager_setup(harness, tmp_path) as setup:
        await setup.manager.start()
        monkeypatch.setattr("manylora.server.names.admin.publishing.copy_artifact", None)
        monkeypatch.setattr(setup.store, "move_in", None)
        generation, _ = setup.registry.changes(0)
        assert (await setup.manager.admin.load("a", setup.root / "a", replace=True)).resident
        assert setup.registry.changes(0)[0] == generation
        await setup.manager.close()


async def test_what_a_dead_process_left_is_cleaned_up(harness: EngineHarness, tmp_path: Path) -> None:
    with open_manager_setup(harness, tmp_path) as setup:
        await setup.load("draining", "served", "lost")
        setup.registry.names.announce("loading", "s3://bucket/x")
        setup.registry.names.drain("draining")
        shutil.rmtree(setup.store.path(setup.manager.views.get("lost").digest))
        await setup.manager.close()
    with open_manager_setup(harness, tmp_path) as setup:
        await setup.manager.start()
        assert [status.name for status in setup.manager.views.page()] == ["lost", "served"]
        assert setup.manager.views.status("lost").state is State.FAILED
        assert setup.store.digests() == [setup.manager.views.get("served").digest]
        with pytest.raises(AdapterNotFound, match="missing"):
            await setup.hold("lost")
        (await setup.hold("served")).release()
        await setup.manager.close()


async def test_an_adapter_of_another_base_is_told_as_that(harness: EngineHarness, tmp_path: Path) -> None:
    with open_manager_setup(harness, tmp_path) as setup:
        await setup.load("a")
        await setup.manager.close()
    other = EngineHarness(tiny_model(tmp_path / "other", num_hidden_layers=1))
    with open_manager_setup(other, tmp_path) as setup:
        await setup.manager.start()
        with pytest.raises(ArtifactError, match=r"published for another base model.*unexpected tensors"):
            await setup.hold("a")
        await setup.manager.close()


@pytest.mark.sweep
@pytest.mark.slow
async def test_a_thousand_registered_adapters(
    harness: EngineHarness, tmp_path: Path, reads: Counter[str]
) -> None:
    """They cost a start no reading of weights, and kilobytes each while nobody asks for them."""
    with open_manager_setup(harness, tmp_path) as setup:
        _register_many(setup)
        reads.clear()
        await setup.manager.close()
    with open_manager_setup(harness, tmp_path) as setup:
        gc.collect()
        tracemalloc.start()
        await setup.manager.start()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert not reads
        assert len(setup.manager.views.serving()) == MANY
        assert held / MANY < 8192
        (await setup.hold("n777")).release()
        assert reads.total() == 1
        await setup.manager.close()


def _register_many(setup: ManagerSetup) -> None:
    """One published, the others registered with facts of their own as a publication would."""
    path = setup.write("n777", seed=777)

    def validate(directory: Path) -> RevisionRecord:
        return setup.manager.loader.check(directory, str(path))[0]

    def fetch(into: Path) -> None:
        shutil.copytree(path, into, dirs_exist_ok=True)

    publish_revision(setup.registry, setup.store, "n777", fetch=fetch, validate=validate, source=str(path))
    digest = setup.registry.names.get("n777").digest or ""
    facts = setup.registry.revisions.find([digest])[digest]
    with Database(f"sqlite:///{setup.root}/registry.db").write() as (
        connection,
        generation,
    ):  # as one: a commit takes milliseconds
        for i in set(range(MANY)) - {777}:
            name, digest = f"n{i}", f"{i:064x}"
            (setup.store.root / digest).mkdir()
            for file in (CONFIG_NAME, WEIGHTS_NAME):
                (setup.store.root / digest / file).touch()
            put_revision(connection, replace(facts, digest=digest))
            row = {"name": name, "digest": digest, "state": "ready", "source": f"s3://bucket/adapters/{name}"}
            more = {"pinned": False, "created": 1.0, "updated": 1.0, "owner": ""}
            connection.execute(names.insert().values({**row, **more}))
            put_history(connection, name, digest, generation, 1)
            put_change(connection, name, generation)
