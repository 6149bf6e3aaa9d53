"""What is written has the modes of any new file, under every umask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_IMODE

import pytest
import torch

from manylora.adapters.disk import follow_umask
from manylora.adapters.format.saving import save_tensors
from manylora.adapters.merge.directory import new_directory
from manylora.adapters.sources.policy import write_new
from manylora.adapters.store.store import RevisionStore


@pytest.fixture(params=[0o022, 0o002, 0o027, 0o077, 0o007, 0o000], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    mask: int = request.param
    before = os.umask(mask)
    yield mask
    os.umask(before)


def mode(path: Path) -> int:
    return S_IMODE(path.stat().st_mode)


def modes(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): mode(path) for path in directory.rglob("*")}


def test_a_tree_whatever_its_modes_were(tmp_path: Path, umask: int) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True, mode=0o700)
    for path in (tree / "one", tree / "deep" / "two"):
        path.touch(mode=0o600)
    (tree / "link").symlink_to("/etc/hostname")
    follow_umask(tree)
    assert mode(tree) == mode(tree / "deep") == 0o777 & ~umask
    assert mode(tree / "one") == mode(tree / "deep" / "two") == 0o666 & ~umask
    assert {path.name for path in tree.rglob("*")} == {"one", "two", "deep", "link"}


def test_the_group_of_a_shared_directory_stays(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    with new_directory(tmp_path / "out") as directory:
        (directory / "file").touch()
    assert mode(tmp_path / "out") & 0o2000


def test_what_is_merged_composed_or_exported(tmp_path: Path, umask: int) -> None:
    """All three write through ``new_directory``."""
    with new_directory(tmp_path / "out") as directory:
        save_tensors({"a": torch.zeros(2)}, directory / "model.safetensors")
        (directory / "config.json").write_text("{}")
    assert mode(tmp_path / "out") == 0o777 & ~umask
    assert set(modes(tmp_path / "out").values()) == {0o666 & ~umask}


def test_tensors_that_training_and_pull_write(tmp_path: Path, umask: int) -> None:
    save_tensors({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert modes(tmp_path) == {"model.safetensors": 0o666 & ~umask}


def test_what_is_fetched_and_published(tmp_path: Path, umask: int) -> None:
    with RevisionStore(tmp_path / "store") as store, store.temporary() as temporary:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            write_new(temporary / name, [b"x"])
            assert mode(temporary / name) == 0o666 & ~umask
        (temporary / "adapter_model.safetensors").chmod(0o600)
        store.prepare(temporary)
        revision = store.move_in(temporary, "0" * 64)
        assert mode(revision) == 0o777 & ~umask
        assert set(modes(revision).values()) == {0o666 & ~umask}
        assert mode(tmp_path / "store" / ".lock") == 0o666 & ~umask
