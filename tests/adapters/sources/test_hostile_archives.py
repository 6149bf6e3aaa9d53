"""Uploaded archives: what is hostile or broken is refused and writes nothing elsewhere."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.sources.policy import SourcePolicy
from tests.support.archives import BUILDS, SOUND, Build, every_build, outcome, refusal, tar, zipped


@every_build
@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "//x",
        "a/..",
        "..",
        "C:\\x",
        "C:x",
        "\\x",
        "\\\\server\\share\\x",
        "..\\x",
        "a\\..\\..\\x",
        "a/..\\x",
        "a\nb",
        "a\x7fb",
        "x" * 1100,
    ],
)
def test_unsafe_paths(tmp_path: Path, build: Build, path: str) -> None:
    if build is BUILDS["old tar"] and len(path) > 255:
        pytest.skip("this format can't hold such a path")
    assert "unsafe path" in refusal(build({**SOUND, path: b"x"}), tmp_path)
    (tmp_path / "more").mkdir()
    assert "unsafe path" in refusal(build({f"../../{CONFIG_NAME}": b"{}"}), tmp_path / "more")


def test_a_zip_name_with_a_nul(tmp_path: Path) -> None:
    content = zipped({f"{CONFIG_NAME}X.exe": b"{}"}).replace(b"jsonX", b"json\0")
    assert "unsafe path" in refusal(content, tmp_path)


@every_build
def test_names_twice(tmp_path: Path, build: Build) -> None:
    assert "twice" in refusal(build({CONFIG_NAME: b"{}", f"./{CONFIG_NAME}": b"[]"}), tmp_path)
    (tmp_path / "more").mkdir()
    assert "twice" in refusal(build({CONFIG_NAME: b"{}", CONFIG_NAME.upper(): b"[]"}), tmp_path / "more")


@every_build
def test_no_adapter_and_a_pickle(tmp_path: Path, build: Build) -> None:
    assert "no adapter" in refusal(build({"README.md": b"x", f"a/b/{CONFIG_NAME}": b"{}"}), tmp_path)
    (tmp_path / "more").mkdir()
    pickled = {CONFIG_NAME: b"{}", "adapter_model.bin": b"x"}
    assert "is a pickle" in refusal(build(pickled), tmp_path / "more")


@pytest.mark.parametrize("kind", [*b"123467", *b"SDMVZ"])
def test_entries_that_are_no_files(tmp_path: Path, kind: int) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        info = tarfile.TarInfo(CONFIG_NAME)
        info.type, info.linkname = bytes([kind]), "/etc/passwd"
        archive.addfile(info)
    assert "the archive holds a" in refusal(content.getvalue(), tmp_path)


def test_a_sparse_file_by_extended_header(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        info = tarfile.TarInfo(CONFIG_NAME)
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 40)}
        archive.addfile(info)
    assert "a sparse file" in refusal(content.getvalue(), tmp_path)


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666])
def test_zip_entries_that_are_no_files(tmp_path: Path, mode: int) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        info = zipfile.ZipInfo(WEIGHTS_NAME)
        info.external_attr = mode << 16
        archive.writestr(info, "/etc/passwd")
    assert "the archive holds a" in refusal(content.getvalue(), tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tmp_path: Path, method: int) -> None:
    assert "neither stored nor deflated" in refusal(zipped(SOUND, method), tmp_path)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    content = bytearray(zipped(SOUND))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refusal(bytes(content), tmp_path)


@pytest.mark.parametrize(
    "magic", [b"", b"x", b"BZh9", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"not an archive" * 99]
)
def test_no_archive(tmp_path: Path, magic: bytes) -> None:
    assert "can't be read" in refusal(magic, tmp_path)


@every_build
def test_too_many_files_and_bytes(tmp_path: Path, build: Build) -> None:
    many = {**SOUND, **{str(number): b"" for number in range(20)}}
    assert "more than 20 files" in refusal(build(many), tmp_path)
    (tmp_path / "more").mkdir()
    small = SourcePolicy(max_bytes=5000, max_files=20)
    assert "5,000 bytes" in refusal(build(SOUND), tmp_path / "more", small)
    (tmp_path / "unkept").mkdir()
    unkept = {"notes": os.urandom(6000), CONFIG_NAME: b"{}"}
    assert "5,000 bytes" in refusal(build(unkept), tmp_path / "unkept", small)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tar.gz", "zip"])
def test_bombs(tmp_path: Path, name: str) -> None:
    build = BUILDS[name]
    content = build({CONFIG_NAME: b"{}", WEIGHTS_NAME: bytes(64 << 20)})
    assert len(content) < 200_000
    large = build({"noise": os.urandom(1 << 20), WEIGHTS_NAME: bytes(64 << 20)})
    (tmp_path / "absolute").mkdir()
    tracemalloc.start()
    assert "more than 100 times its size" in refusal(content, tmp_path)
    assert "33,554,432 bytes" in refusal(large, tmp_path / "absolute")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20, "memory stays bounded"


def test_a_bomb_behind_the_end_of_a_tar(tmp_path: Path) -> None:
    assert "too much follows" in refusal(gzip.compress(tar(SOUND) + bytes(32 << 20)), tmp_path)


def test_huge_headers(tmp_path: Path) -> None:
    for number, kind in enumerate((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 2 << 30
        parent = tmp_path / str(number)
        parent.mkdir()
        assert "extended header has 2,147,483,648 bytes" in refusal(info.tobuf(), parent)
    directory = zipped({f"{number:0200}": b"" for number in range(6000)})
    assert "directory is too large" in refusal(directory, tmp_path)


def test_an_endless_chain_of_extended_headers(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type = tarfile.GNUTYPE_LONGNAME
    assert "too many extended headers" in refusal(info.tobuf() * 5000, tmp_path)


@pytest.mark.parametrize("size", [-1, 1 << 62])
def test_odd_sizes(tmp_path: Path, size: int) -> None:
    info = tarfile.TarInfo(CONFIG_NAME)
    info.size = size
    assert "can't be read" in refusal(info.tobuf(format=tarfile.GNU_FORMAT), tmp_path)


@every_build
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_truncated(tmp_path_factory: pytest.TempPathFactory, build: Build, data: st.DataObject) -> None:
    content = build(SOUND)
    compressed = content[:2] in (b"PK", b"\x1f\x8b")
    end = len(content) if compressed else len(content.rstrip(b"\0"))  # a tar's padding may be missing
    cut = data.draw(st.integers(0, end - 1))
    refusal(content[:cut], tmp_path_factory.mktemp("cut"))


names = st.sampled_from(["..", ".", "a", CONFIG_NAME, WEIGHTS_NAME, "/", "\\", "C:", "~", "ä", " ", "x" * 99])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(paths, st.binary(max_size=600), max_size=4), st.sampled_from([tar, zipped]), st.data())
def test_anything_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], build: Build, data: st.DataObject
) -> None:
    """Hostile names, and archives with some of their bytes changed: refused, or flat and of known names."""
    content = bytearray(build(files))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    parent = tmp_path_factory.mktemp("any")
    try:
        kept = outcome(bytes(content), parent / "into")
    except ArtifactError:
        kept = None
    assert kept != {}
    assert [path.name for path in parent.iterdir()] == ["into"]
    assert {path.name for path in (parent / "into").rglob("*")} <= {CONFIG_NAME, WEIGHTS_NAME}
    assert all(path.is_file() and not path.is_symlink() for path in (parent / "into").iterdir())
