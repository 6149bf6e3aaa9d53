"""What an adapter's file says of its making, and what is made of it."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.files import WEIGHTS_NAME
from manylora.adapters.format.provenance import KEY, Provenance, read_provenance
from tests.support.adapter_manager import open_manager_setup
from tests.support.adapters import base_of_directory, write_adapter
from tests.support.engine_harness import EngineHarness

QLORA = Provenance(base_quantization="nf4", base_fingerprint="ab12", lineage={"method": "svd", "rank": 3})


def write(directory: Path, text: str | None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    metadata = None if text is None else {KEY: text}
    save_file({"x": torch.zeros(1)}, directory / WEIGHTS_NAME, metadata=metadata)
    return directory


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / WEIGHTS_NAME, metadata=QLORA.metadata())
    assert read_provenance(tmp_path) == QLORA


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "[]",
        "null",
        json.dumps({"base_quantization": "fp3", "base_fingerprint": 7, "lineage": [1]}),
        json.dumps({"lineage": {"a": math.nan}}),
        '{"lineage": {"a": 1e999}}',
        '{"lineage": {}, "lineage": {"a": 1}}',
        "[" * 5000,
        json.dumps({"lineage": {"a": "x" * 70_000}}),
        json.dumps({"base_fingerprint": "f" * 129}),
    ],
)
def test_what_can_not_be_read_says_nothing(tmp_path: Path, text: str | None) -> None:
    assert read_provenance(write(tmp_path, text)) == Provenance()


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x40\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WEIGHTS_NAME).write_bytes(content)
    assert read_provenance(tmp_path) == Provenance()
    assert read_provenance(tmp_path / "nowhere") == Provenance()


@pytest.mark.parametrize(
    ("trained", "served", "said"),
    [
        (None, "nf4", None),
        ("none", "none", None),
        ("nf4", "nf4", None),
        ("none", "nf4", "a base in 16 or 32 bits and runs on one in nf4"),
        ("nf4", "none", "a base in nf4 and runs on one in 16 or 32 bits"),
        ("int8", "nf4", "a base in int8 and runs on one in nf4"),
    ],
)
def test_warnings_are_of_what_is_known(trained: str | None, served: str, said: str | None) -> None:
    warning = Provenance(base_quantization=trained).warning(served)
    assert warning is None if said is None else warning is not None and said in warning


async def test_the_server_shows_it(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_manager_setup(EngineHarness(tiny_llama), tmp_path) as setup:
        path = write_adapter(tmp_path / "a", setup.harness.base)
        tensors = load_file(path / WEIGHTS_NAME)
        save_file(tensors, path / WEIGHTS_NAME, metadata=QLORA.metadata())
        with caplog.at_level(logging.WARNING, "server"):
            await setup.manager.admin.load("a", path)
        status: Any = setup.manager.views.status("a")
        assert status.lineage == QLORA.lineage
        (warning,) = status.details["warnings"]
        assert warning.startswith("it was trained on a base in nf4")
        assert f"{path}: it was trained" in caplog.text
        await setup.manager.close()


def test_the_same_base_in_fewer_bits_has_other_weights(tiny_llama: Path) -> None:
    """DoRA's norms are kept under this key."""
    base: BaseModel = base_of_directory(tiny_llama)
    keys = {
        base.weights_key,
        *(type(base)(**{**vars(base), "quantization": q}).weights_key for q in ("nf4", "int8")),
    }
    assert len(keys) == len({key[:16] for key in keys}) == 3
