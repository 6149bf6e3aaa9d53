"""The packed form of a revision on disk: what was packed comes back, and nothing else is taken for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import manylora.adapters.store.derived_files as beside_module
from manylora.adapters.errors import AdapterNotFound, StoreError
from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.store.derived_files import keep_beside
from manylora.adapters.store.store import RevisionStore
from manylora.server.kernels.buffers import ReusedMemory
from manylora.server.kernels.inputs import ClassPages, PromptPages, TablePages, VectorPages, VocabularyPages
from manylora.server.model.pages.packed_file import PREFIX, Packing, read_packed, serialize
from manylora.server.model.pages.pool import PackedAdapter

MODULES = (TargetModule("q", 40, 64), TargetModule("v", 40, 24))
DIGEST = "d1" * 32
MOST = 1 << 20
NEW = ReusedMemory(0)  # as there is nothing to use again


def packing(dtype: torch.dtype = torch.float32, weights_key: str = "weights") -> Packing:
    return Packing.of(MODULES, weights_key, dtype)


def plain(dtype: torch.dtype = torch.float32) -> PackedAdapter:
    data = torch.randn(1000, generator=torch.Generator().manual_seed(1)).to(dtype)
    return PackedAdapter(DIGEST, data, np.array([0, 512]), np.array([4, 2], np.int32))


def everything() -> PackedAdapter:
    vectors = VectorPages(
        *(
            np.array(offsets)
            for offsets in ([1, -1], [-1, 32], [-1, -1], [-1, 64], [96, -1], [-1, 9], [16, 0], [0, 64])
        )
    )
    table = TablePages(np.array([3, 70_000]), 100, 2, 200, 300)
    vocabulary = VocabularyPages(70_001, None, table, ClassPages(3, 96))
    own: dict[str, Any] = {
        "vectors": vectors,
        "vocabulary": vocabulary,
        "prompt": PromptPages(7, 64, 400, in_cache=True),
    }
    return replace(plain(torch.bfloat16), activation=(5, 6), **own)


def same(one: object, other: object) -> bool:
    """Equal in every field, arrays and tensors by value."""
    if isinstance(one, np.ndarray | torch.Tensor):
        assert isinstance(other, type(one))
        return str(one.dtype) == str(other.dtype) and one.tolist() == other.tolist()
    if hasattr(one, "__dataclass_fields__"):
        return all(same(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)
    return one == other


def write(directory: Path, packed: PackedAdapter, form: Packing) -> Path:
    path = directory / form.file_name
    path.write_bytes(b"".join(serialize(packed, form)))
    return path


@pytest.mark.parametrize("packed", [plain(), plain(torch.bfloat16), everything()])
def test_what_was_packed_comes_back(tmp_path: Path, packed: PackedAdapter) -> None:
    form = packing(packed.data.dtype)
    write(tmp_path, packed, form)
    found = read_packed(tmp_path, DIGEST, form, MOST, NEW)
    assert found is not None
    assert same(found, packed)
    assert found.data.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:20],
        lambda _: b"",
        lambda content: content[:50] + bytes([content[50] ^ 1]) + content[51:],
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        lambda content: bytes(len(content)),
    ],
)
def test_damage_is_seen(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path, plain(), packing())
    path.write_bytes(damage(path.read_bytes()))
    assert read_packed(tmp_path, DIGEST, packing(), MOST, NEW) is None


def test_it_is_that_of_one_revision_on_one_base_in_one_layout(tmp_path: Path) -> None:
    path = write(tmp_path, plain(), packing())
    fewer = Packing.of(MODULES[:1], "weights", torch.float32)
    for form in (packing(torch.bfloat16), packing(weights_key="nf4-weights"), fewer):
        assert read_packed(tmp_path, DIGEST, form, MOST, NEW) is None
        shutil.copy(path, tmp_path / form.file_name)
        assert read_packed(tmp_path, DIGEST, form, MOST, NEW) is None, "whatever the file is called"
    assert read_packed(tmp_path, "e2" * 32, packing(), MOST, NEW) is None
    assert read_packed(tmp_path, DIGEST, packing(), MOST, NEW) is not None


def test_what_can_not_be_one_is_not_read(tmp_path: Path) -> None:
    """A pipe would block, and a file of any size would take memory of that size."""
    path = tmp_path / packing().file_name
    assert read_packed(tmp_path, DIGEST, packing(), MOST, NEW) is None
    os.mkfifo(path)
    assert read_packed(tmp_path, DIGEST, packing(), MOST, NEW) is None
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert read_packed(tmp_path, DIGEST, packing(), MOST, NEW) is None


def revision(store: Path) -> Path:
    """A directory that counts as one, and holds nothing."""
    directory = store / DIGEST
    directory.mkdir()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (directory / name).touch()
    return directory


def test_only_the_last_two_of_a_kind_stay(tmp_path: Path) -> None:
    with RevisionStore(tmp_path) as store:
        directory = revision(tmp_path)
        (directory / "other").write_text("")
        for age, name in enumerate(("a", "b", "c", "a")):
            keep_beside(store, DIGEST, f"{PREFIX}{name}", [name.encode(), memoryview(b"!")], kind=PREFIX)
            os.utime(directory / f"{PREFIX}{name}", ns=(age, age))
        kept = {path.name for path in directory.iterdir()} - {CONFIG_NAME, WEIGHTS_NAME}
        assert kept == {"other", f"{PREFIX}a", f"{PREFIX}c"}
        assert (directory / f"{PREFIX}a").read_bytes() == b"a!"
        assert not list(tmp_path.glob(".tmp-*"))


def test_a_revision_that_is_gone_and_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RevisionStore(tmp_path) as store:
        with pytest.raises(AdapterNotFound):
            keep_beside(store, DIGEST, "x-1", [b""], kind="x-")
        directory = revision(tmp_path)
        monkeypatch.setattr(beside_module, "SPARE_BYTES", 1 << 60)
        with pytest.raises(StoreError, match="No space left"):
            keep_beside(store, DIGEST, "x-1", [b""], kind="x-")
        assert {path.name for path in directory.iterdir()} == {CONFIG_NAME, WEIGHTS_NAME}
