"""Copying the files of an artifact, and comparing files byte by byte."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from manylora.adapters.disk import disk_fault
from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import MAX_ENTRIES
from manylora.adapters.format.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    FileFault,
    open_regular,
    parse_config_bytes,
    place_in,
    read_config,
    read_config_bytes,
    read_into,
    read_text_files,
)
from manylora.adapters.format.foreign.file_names import foreign_weights

_CHUNK = 1 << 20  # bytes copied or compared at a time


def copy_artifact(source: Path, target: Path) -> None:
    """Copy the files of an artifact and nothing else into the directory ``target``, each read once.

    Nothing is synced to disk: the store does that with what it keeps.

    Raises:
        FileFault: a file is missing, is no regular file or can't be read.
        OSError: the disk refused.
    """
    foreign = foreign_weights(_names(source))
    config: dict[str, Any] = {}
    if not foreign or os.path.lexists(source / CONFIG_NAME):
        content = read_config_bytes(source / CONFIG_NAME)
        config = parse_config_bytes(content)
        (target / CONFIG_NAME).write_bytes(content)
    for name in foreign or (WEIGHTS_NAME,):
        _copy(source / name, target / name)
    _copy_texts(source, target, config)


def copy_texts(source: Path, target: Path) -> None:
    """Copy the files of text beside an artifact, whose config is in ``target``.

    Raises:
        ArtifactError: one can't be read, or they are too large.
        StoreError: the disk refused.
    """
    try:
        _copy_texts(source, target, read_config(target / CONFIG_NAME))
    except FileFault as fault:
        raise ArtifactError([str(fault)]) from None
    except OSError as error:
        raise disk_fault(f"an adapter can't be written to {target}", error) from None


def _names(directory: Path) -> frozenset[str]:
    try:
        with os.scandir(directory) as entries:
            return frozenset(entry.name for entry in islice(entries, MAX_ENTRIES))
    except OSError:
        return frozenset()  # what is missing is told by name


def _copy(source: Path, target: Path) -> None:
    with open_regular(source) as file, target.open("wb") as copy:
        left = os.fstat(file.fileno()).st_size
        buffer = memoryview(bytearray(_CHUNK))
        while left:
            chunk = buffer[: min(left, _CHUNK)]
            read_into(file, chunk, source.name)
            copy.write(chunk)
            left -= len(chunk)


def _copy_texts(source: Path, target: Path, config: Mapping[str, Any]) -> None:
    for name, text in read_text_files(source, config).items():
        place_in(target, name).write_bytes(text)


def same_bytes(one: Path, two: Path) -> bool:
    """Whether two files have the same content."""
    if one.stat().st_size != two.stat().st_size:
        return False
    with one.open("rb") as first, two.open("rb") as second:
        while piece := first.read(_CHUNK):
            if piece != second.read(_CHUNK):
                return False
    return True
