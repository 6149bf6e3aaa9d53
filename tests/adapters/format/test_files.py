"""Files that are missing, damaged, hostile or not files at all."""

from __future__ import annotations

import json
import os
import re
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from manylora.adapters.errors import SourceMissing
from manylora.adapters.format.artifact import read_artifact
from manylora.adapters.format.files import CONFIG_NAME, MAX_CONFIG_BYTES, WEIGHTS_NAME
from tests.support.adapters import write_adapter
from tests.support.artifact_cases import (
    BASE,
    LIMITS,
    Q_A,
    faults_of,
    valid,
    write_raw,
)


def test_missing_directory_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match="no such file"):
        read_artifact(tmp_path / "none", BASE, LIMITS)
    with pytest.raises(SourceMissing, match="holds neither"):
        read_artifact(tmp_path, BASE, LIMITS)
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceMissing, match="not a directory"):
        read_artifact(tmp_path / "file", BASE, LIMITS)
    with pytest.raises(SourceMissing):
        read_artifact(Path("a\0b"), BASE, LIMITS)


def test_each_file_missing(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", BASE)
    (tmp_path / "a" / CONFIG_NAME).unlink()
    assert faults_of(tmp_path / "a") == (f"there is no {CONFIG_NAME}",)
    write_adapter(tmp_path / "b", BASE)
    (tmp_path / "b" / WEIGHTS_NAME).unlink()
    assert faults_of(tmp_path / "b") == (f"there is no {WEIGHTS_NAME}",)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "pytorch_lora_weights.pkl"])
def test_pickles_are_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    write_adapter(tmp_path, BASE, use_qalora=True)
    (tmp_path / WEIGHTS_NAME).rename(tmp_path / name)
    faults = faults_of(tmp_path)
    assert len(faults) == 2, "the config is judged as well"
    assert f"'{name}' is a pickle" in faults[1]
    assert "save_pretrained" in faults[1]
    write_adapter(tmp_path, BASE)
    read_artifact(tmp_path, BASE, LIMITS)  # beside safetensors a pickle is never looked at


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_odd_files_do_not_hang_or_crash(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_adapter(tmp_path, BASE) / name
    path.unlink()
    os.mkfifo(path)
    assert faults_of(tmp_path) == (f"{name} is not a regular file",)
    path.unlink()
    path.mkdir()
    assert faults_of(tmp_path) == (f"{name} is not a regular file",)
    path.rmdir()
    path.symlink_to("/dev/zero")
    assert faults_of(tmp_path) == (f"{name} is not a regular file",)
    path.unlink()
    path.symlink_to(name)
    assert faults_of(tmp_path) == (f"{name} can't be read: too many levels of symbolic links",)
    open_file = os.open

    def deny(opened: Any, *args: Any, **kwargs: Any) -> int:
        if opened == path:
            raise PermissionError(13, "Permission denied")
        return open_file(opened, *args, **kwargs)

    monkeypatch.setattr(os, "open", deny)
    assert faults_of(tmp_path) == (f"{name} can't be read: permission denied",)


def test_a_directory_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(SourceMissing, match="permission denied"):
        read_artifact(tmp_path, BASE, LIMITS)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "must hold a JSON object, not a list"),
        (b"null", "must hold a JSON object"),
        (b"\xff\xfe{}", "not valid UTF-8"),
        (b'\xef\xbb\xbf{"peft_type": "LORA"}', "not valid JSON"),
        (b'{"r": 8, "r": 8}', "the key 'r' appears twice"),
        (b'{"rank_pattern": {"q": 1, "q": 2}}', "the key 'q' appears twice"),
        (b'{"lora_alpha": NaN}', "NaN is not a JSON number"),
        (b'{"lora_alpha": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"lora_alpha": 1e999}', "a number that is not finite"),
        (b'{"r": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"x": "\\ud800"}', "not valid Unicode"),
        (b'{"\\ud800": 1}', "not valid Unicode"),
        (b'{"x": "' + b"y" * MAX_CONFIG_BYTES + b'"}', "the limit is"),
    ],
)
def test_malformed_configs(tmp_path: Path, content: bytes, expected: str) -> None:
    write_adapter(tmp_path, BASE)
    (tmp_path / CONFIG_NAME).write_bytes(content)
    faults = faults_of(tmp_path)
    assert len(faults) == 1, faults
    assert expected in faults[0]


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is truncated"),
        (b"\x08\0\0", "is truncated"),
        (struct.pack("<Q", 100) + b"{}", "its header does not fit"),
        (struct.pack("<Q", 1 << 63) + b"{}", "its header does not fit"),
        (struct.pack("<Q", 4) + b"null", "must hold a JSON object"),
        (struct.pack("<Q", 2) + b"{}" + b"\0", "belong to no tensor"),
        ({"a": [1]}, "'a' must have exactly"),
        ({"a": ENTRY | {"more": 1}}, "'a' must have exactly"),
        ({"a": ENTRY | {"dtype": "F7"}}, "unknown dtype 'F7'"),
        ({"a": ENTRY | {"dtype": ["F32"]}}, "unknown dtype"),
        ({"a": ENTRY | {"shape": [-1]}}, "impossible shape"),
        ({"a": ENTRY | {"shape": [True]}}, "impossible shape"),
        ({"a": ENTRY | {"shape": [1.0]}}, "impossible shape"),
        ({"a": ENTRY | {"shape": [1] * 9}}, "impossible shape"),
        ({"a": ENTRY | {"shape": [1 << 60, 1 << 60]}}, "impossible shape"),
        ({"a": ENTRY | {"shape": [1 << 40, 1 << 40]}}, "has 4 bytes for shape"),
        ({"a": ENTRY | {"shape": "1"}}, "impossible shape"),
        ({"a": ENTRY | {"data_offsets": [0]}}, "impossible data_offsets"),
        ({"a": ENTRY | {"data_offsets": [4, 0]}}, "has -4 bytes"),
        ({"a": ENTRY | {"data_offsets": [0, -4]}}, "impossible data_offsets"),
        ({"a": ENTRY | {"data_offsets": [4, 8]}}, "does not start where"),
        ({"a": ENTRY, "b": ENTRY}, "does not start where"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 8]}}, "is truncated: its tensors take 8 bytes"),
        ({"__metadata__": {"a": 1}}, "must map strings to strings"),
        ({"__metadata__": []}, "must map strings to strings"),
        (b'{"a": 1, "a": 1}', "appears twice"),
    ],
)
def test_malformed_weights(tmp_path: Path, content: object, expected: str) -> None:
    write_adapter(tmp_path, BASE)
    if isinstance(content, bytes) and not content.startswith(b"{"):
        (tmp_path / WEIGHTS_NAME).write_bytes(content)
    else:
        write_raw(tmp_path, content, b"\0" * 4)
    faults = faults_of(tmp_path)
    assert len(faults) == 1, faults
    assert expected in faults[0]


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    whole = (write_adapter(tmp_path, BASE) / WEIGHTS_NAME).read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / WEIGHTS_NAME).write_bytes(whole[:size])
        assert "truncated" in faults_of(tmp_path)[0]


def test_hostile_sizes_cost_no_memory(tmp_path: Path) -> None:
    """Three sparse gigabytes: a header that claims two of them, then data that claims all."""
    write_adapter(tmp_path, BASE)
    tensor = json.dumps({Q_A: {"dtype": "F32", "shape": [1 << 28, 3], "data_offsets": [0, 3 << 30]}}).encode()
    for prefix in (struct.pack("<Q", 2 << 30), struct.pack("<Q", len(tensor)) + tensor):
        with (tmp_path / WEIGHTS_NAME).open("wb") as file:
            file.write(prefix)
            file.truncate(len(prefix) + (3 << 30))
        tracemalloc.start()
        assert re.search("bytes, more than any adapter|the limit is", " ".join(faults_of(tmp_path)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(tmp_path, BASE)
    stat = os.fstat

    def before_the_cut(descriptor: int) -> os.stat_result:
        result = stat(descriptor)
        os.truncate(tmp_path / WEIGHTS_NAME, result.st_size // 2)
        return result

    monkeypatch.setattr("manylora.adapters.format.weights.tensors.os.fstat", before_the_cut)
    assert any("truncated" in fault for fault in faults_of(tmp_path))


def test_nothing_but_safetensors_is_needed(tmp_path: Path) -> None:
    config, tensors = valid()
    tmp_path.joinpath(CONFIG_NAME).write_text(json.dumps(config))
    save_file(tensors, tmp_path / WEIGHTS_NAME)  # without the metadata that PEFT adds
    read_artifact(tmp_path, BASE, LIMITS)
