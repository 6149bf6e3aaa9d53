"""Tensors that do not fit on the disk."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from manylora.adapters.format.saving import save_tensors


def test_tensors_and_metadata(tmp_path: Path) -> None:
    save_tensors({"a": torch.arange(5)}, tmp_path / "x", {"key": "value"})
    assert load_file(tmp_path / "x")["a"].tolist() == [0, 1, 2, 3, 4]
    assert b'"key":"value"' in (tmp_path / "x").read_bytes()


def test_what_the_disk_refuses_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_tensors({"a": torch.zeros(5)}, tmp_path / "none" / "x")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            save_tensors({"a": torch.zeros(100_000)}, tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
