"""Adapters packed into archives of every kind, and what comes of unpacking them."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.sources.archives import unpack
from manylora.adapters.sources.policy import SourcePolicy

POLICY = SourcePolicy(max_bytes=32 << 20, max_files=20)
SOUND = {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"weights" * 1000, "README.md": b"not kept"}
Build = Callable[[Mapping[str, bytes]], bytes]


def tar(files: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=kind) as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return content.getvalue()


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


BUILDS: dict[str, Build] = {
    "tar": tar,
    "gnu tar": lambda files: tar(files, tarfile.GNU_FORMAT),
    "old tar": lambda files: tar(files, tarfile.USTAR_FORMAT),
    "tar.gz": lambda files: gzip.compress(tar(files)),
    "tar.gz in two members": lambda files: gzip.compress(tar(files)[:700]) + gzip.compress(tar(files)[700:]),
    "zip": zipped,
    "stored zip": lambda files: zipped(files, zipfile.ZIP_STORED),
}
every_build = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


def outcome(content: bytes, into: Path, policy: SourcePolicy = POLICY) -> dict[str, bytes]:
    into.mkdir()
    unpack(io.BytesIO(content), into, policy)
    return {path.name: path.read_bytes() for path in into.iterdir()}


def refusal(content: bytes, parent: Path, policy: SourcePolicy = POLICY) -> str:
    """Why an archive is refused; asserts that nothing but known names in one directory was written."""
    before = sorted(parent.iterdir())
    with pytest.raises(ArtifactError) as error:
        outcome(content, parent / "into", policy)
    assert sorted(parent.iterdir()) == sorted([*before, parent / "into"])
    assert {path.name for path in (parent / "into").rglob("*")} <= {CONFIG_NAME, WEIGHTS_NAME}
    assert len(str(error.value)) < 400
    return str(error.value)
