"""A directory that appears as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.disk import sync_path
from adapters.errors import StoreError


def check_absent(out: Path) -> None:
    """Refuse early what would be refused at the end.

    Raises:
        StoreError: there is something at ``out`` already.
    """
    if os.path.lexists(out):
        raise StoreError(f"{out} exists already: remove it, or choose another directory")


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A temporary directory beside ``out``, which it becomes when the block ends without an exception.

    Otherwise nothing is left of it.

    Raises:
        StoreError: there is something at ``out`` already, or the disk refused; says what to do.
    """
    check_absent(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise StoreError(f"{out} can't be written: {error.strerror}") from None
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o755)
        temporary.rename(out)
        sync_path(out.parent)
    except OSError as error:
        raise StoreError(
            f"{out} can't be written: {error.strerror or error}; nothing was left behind"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(directory: Path) -> None:
    for entry in directory.iterdir():
        entry.chmod(0o644)  # safetensors writes files that only their owner can read
        sync_path(entry)
    sync_path(directory)
