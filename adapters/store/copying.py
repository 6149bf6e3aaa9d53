"""Copying the files of an artifact, and comparing files byte by byte."""

from __future__ import annotations

import os
from pathlib import Path

from manylora.adapters.format.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    open_regular,
    parse_config_bytes,
    read_config_bytes,
    read_into,
    read_text_files,
)

_CHUNK = 1 << 20  # bytes copied or compared at a time


def copy_artifact(source: Path, target: Path) -> None:
    """Copy the files of an artifact and nothing else into the directory ``target``, each read once.

    Nothing is synced to disk: the store does that with what it keeps.

    Raises:
        FileFault: a file is missing, is no regular file or can't be read.
        OSError: the disk refused.
    """
    content = read_config_bytes(source / CONFIG_NAME)
    config = parse_config_bytes(content)
    (target / CONFIG_NAME).write_bytes(content)
    with open_regular(source / WEIGHTS_NAME) as file, (target / WEIGHTS_NAME).open("wb") as copy:
        left = os.fstat(file.fileno()).st_size
        buffer = memoryview(bytearray(_CHUNK))
        while left:
            chunk = buffer[: min(left, _CHUNK)]
            read_into(file, chunk, WEIGHTS_NAME)
            copy.write(chunk)
            left -= len(chunk)
    for name, text in read_text_files(source, config).items():
        (target / name).write_bytes(text)


def same_bytes(one: Path, two: Path) -> bool:
    """Whether two files have the same content."""
    if one.stat().st_size != two.stat().st_size:
        return False
    with one.open("rb") as first, two.open("rb") as second:
        while piece := first.read(_CHUNK):
            if piece != second.read(_CHUNK):
                return False
    return True
