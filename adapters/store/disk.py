"""Writing the files of a revision so that they outlive a loss of power, and comparing them."""

from __future__ import annotations

import os
from pathlib import Path

from manylora.adapters.format.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    add_text_files,
    artifact_digest,
    open_regular,
    parse_config_bytes,
    read_config_bytes,
    read_into,
    read_text_files,
)

_CHUNK = 1 << 20  # bytes copied or compared at a time


def copy_artifact(source: Path, target: Path) -> str:
    """Copy the files of the artifact, each read once, and return its digest.

    Raises:
        FileFault: a file is missing or can't be read.
        OSError: the disk refused.
    """
    content = read_config_bytes(source / CONFIG_NAME)
    config = parse_config_bytes(content)
    digest = artifact_digest(config)
    _write(target / CONFIG_NAME, content)
    with open_regular(source / WEIGHTS_NAME) as file, (target / WEIGHTS_NAME).open("wb") as copy:
        left = os.fstat(file.fileno()).st_size
        buffer = memoryview(bytearray(_CHUNK))
        while left:
            chunk = buffer[: min(left, _CHUNK)]
            read_into(file, chunk, WEIGHTS_NAME)
            digest.update(chunk)
            copy.write(chunk)
            left -= len(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    texts = read_text_files(source, config)
    add_text_files(digest, texts)
    for name, text in texts.items():
        _write(target / name, text)
    target.chmod(0o755)
    sync_path(target)
    return digest.hexdigest()


def same_bytes(one: Path, two: Path) -> bool:
    """Whether two files have the same content."""
    if one.stat().st_size != two.stat().st_size:
        return False
    with one.open("rb") as first, two.open("rb") as second:
        while piece := first.read(_CHUNK):
            if piece != second.read(_CHUNK):
                return False
    return True


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    sync_path(path)


def sync_path(path: Path) -> None:
    """Have the disk keep a file's bytes, or a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
