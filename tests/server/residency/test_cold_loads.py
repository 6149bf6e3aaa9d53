"""A cold load reads the packed form and nothing else; where that fails, the revision itself."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

import manylora.server.residency.revision_loader as library_module
from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.adapters.format.files import KEPT_NAMES
from manylora.adapters.registry.publication_record import RECORD_NAME
from manylora.server.kernels.inputs import VectorPages
from manylora.server.model.pages import packing
from manylora.server.model.pages.packed_file import PREFIX
from manylora.server.model.pages.pool import PagePool
from manylora.server.residency.revision_loader import RevisionLoader
from tests.support.adapter_manager import ManagerSetup, open_manager_setup
from tests.support.engine_harness import EngineHarness


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often an artifact was read and checked, and a module laid out."""
    counted: Counter[str] = Counter()

    def reading(*args: object) -> object:
        counted["read"] += 1
        return read_artifact(*args)  # type: ignore[arg-type]

    def folding(*args: object) -> object:
        counted["folded"] += 1
        return packing.fold(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(library_module, "read_artifact", reading)
    monkeypatch.setattr("manylora.server.model.pages.pool.fold", folding)
    return counted


def packed_files(setup: ManagerSetup, name: str) -> list[Path]:
    return sorted(setup.store.path(setup.manager.views.get(name).digest).glob(f"{PREFIX}*"))


def resident_bytes(setup: ManagerSetup, name: str) -> torch.Tensor:
    """What lies on the device of the only adapter there."""
    pages = setup.manager.residency.references.revision(setup.manager.views.get(name).digest).pages
    assert pages is not None
    return setup.pool.data[pages.start : pages.start + setup.unit // 4].clone()


async def cold(setup: ManagerSetup, name: str) -> torch.Tensor:
    """Load an adapter that is neither on the device nor in memory."""
    await setup.manager.admin.evict(name)
    setup.pool.data[-setup.unit // 4 :] = torch.nan  # what is not written shows
    (await setup.hold(name)).release()
    return resident_bytes(setup, name)


async def test_a_cold_load_neither_parses_nor_packs(
    harness: EngineHarness, tmp_path: Path, work: Counter[str]
) -> None:
    """Neither in the server that published it nor in one that starts later."""
    with open_manager_setup(harness, tmp_path, room=1) as setup:
        await setup.load("a")
        published = resident_bytes(setup, "a")
        work.clear()
        assert torch.equal(await cold(setup, "a"), published)
        assert not work
        await setup.manager.close()
    with open_manager_setup(harness, tmp_path, room=1) as setup:
        await setup.manager.start()
        assert torch.equal(await cold(setup, "a"), published)
        assert not work
        await setup.manager.close()


async def test_a_packed_form_that_is_lost_or_damaged_is_made_again(
    harness: EngineHarness, tmp_path: Path, work: Counter[str]
) -> None:
    with open_manager_setup(harness, tmp_path, room=1) as setup:
        await setup.load("a")
        published = resident_bytes(setup, "a")
        (path,) = packed_files(setup, "a")
        content = path.read_bytes()
        for damaged in (None, content[:-1], content[:100] + b"?" + content[101:]):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            work.clear()
            assert torch.equal(await cold(setup, "a"), published)
            assert work["read"] == 1
            assert path.read_bytes() == content
        path.unlink()
        weights = setup.store.path(setup.manager.views.get("a").digest) / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
        with pytest.raises(ArtifactError, match="has changed"):
            await cold(setup, "a")
        await setup.manager.close()


async def test_it_goes_with_its_revision_and_is_no_part_of_it(harness: EngineHarness, tmp_path: Path) -> None:
    with open_manager_setup(harness, tmp_path, room=1) as setup:
        await setup.load("a")
        digest = setup.manager.views.get("a").digest
        assert read_artifact(setup.store.path(digest), harness.base, Limits(64, 1 << 24)).digest == digest
        shutil.copytree(setup.store.path(digest), tmp_path / "copy")
        (forged,) = (tmp_path / "copy").glob(f"{PREFIX}*")
        forged.write_bytes(b"not what a server wrote")
        (tmp_path / "copy" / f"{PREFIX}more").write_bytes(b"")
        await setup.manager.deletions.delete("a")
        assert not list(setup.store.root.glob("[0-9a-f]*"))
        await setup.manager.admin.load("b", tmp_path / "copy")
        assert setup.manager.views.get("b").digest == digest
        names = {path.name for path in setup.store.path(digest).iterdir()}
        assert names - {*KEPT_NAMES, RECORD_NAME} == {path.name for path in packed_files(setup, "b")}
        assert len(packed_files(setup, "b")) == 1
        assert packed_files(setup, "b")[0].read_bytes() != forged.read_bytes()
        await setup.manager.close()


async def test_limits_hold_for_what_was_packed_under_others(harness: EngineHarness, tmp_path: Path) -> None:
    with open_manager_setup(harness, tmp_path, room=1) as setup:
        await setup.load("a")
        await setup.manager.close()
    with open_manager_setup(harness, tmp_path, room=1, max_rank=2) as setup:
        await setup.manager.start()
        with pytest.raises(ArtifactError, match="rank"):
            await cold(setup, "a")
        await setup.manager.close()


async def test_what_is_far_larger_packed_than_stored_is_not_kept(
    harness: EngineHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Counter[str]
) -> None:
    monkeypatch.setattr(library_module, "SMALL_BYTES", -(1 << 30))
    with open_manager_setup(harness, tmp_path, room=1) as setup:
        await setup.load("a")
        published = resident_bytes(setup, "a")
        assert torch.equal(await cold(setup, "a"), published)
        assert not packed_files(setup, "a")
        assert work["read"] > 1
        await setup.manager.close()


async def test_a_server_that_takes_fewer_adapters_refuses_what_another_has_packed(
    harness: EngineHarness, tmp_path: Path, work: Counter[str]
) -> None:
    """As one that was started again with --deterministic does."""

    def refuse(vectors: VectorPages | None) -> None:
        assert vectors is None
        raise ArtifactError(["not here"])

    with open_manager_setup(harness, tmp_path, room=1) as setup:
        await setup.load("a")
        digest = setup.manager.views.get("a").digest
        assert len(packed_files(setup, "a")) == 1
        work.clear()
        for taken in (None, refuse):
            modules, dtype = harness.decoder.modules, setup.pool.data.dtype
            pool = PagePool(modules, 1 << 22, dtype, torch.device("cpu"), harness.decoder, taken=taken)
            limits = Limits(max_rank=64, max_bytes=1 << 24)
            loader = RevisionLoader(harness.base, setup.registry, setup.store, pool, limits)
            if taken is None:
                assert loader.read(digest).digest == digest
            else:
                with pytest.raises(ArtifactError, match="not here"):
                    loader.read(digest)
        assert not work, "both read what was packed"
        await setup.manager.close()
