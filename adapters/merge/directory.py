"""A directory that appears as a whole or not at all.

It is written under a hidden name beside its place, under a lock that the kernel drops with the process.
So what a killed process has left is known by not being locked, and the next one to write there removes it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from manylora.adapters.disk import disk_fault, follow_umask, sync_path
from manylora.adapters.errors import OutputExists
from manylora.adapters.file_locks import is_locked_directory, locked_directory

_PARTIAL = ".partial"


def check_absent(out: Path) -> None:
    """Refuse an output directory that is there already, before the work that would fill it.

    Raises:
        OutputExists: there is something at ``out`` already.
    """
    if os.path.lexists(out):
        raise OutputExists(f"{out} exists already: remove it, or choose another directory")


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A temporary directory beside ``out``, which it becomes when the block ends without an exception.

    Otherwise nothing is left of it.

    Raises:
        StoreError: there is something at ``out`` already, or the disk refused; says what to do.
    """
    check_absent(out)
    with ExitStack() as stack:
        try:
            temporary = _temporary(out, stack)
        except OSError as error:
            raise disk_fault(f"{out} can't be written", error) from None
        try:
            yield temporary
            follow_umask(temporary)
            _sync(temporary)
            temporary.rename(out)
            sync_path(out.parent)
        except OSError as error:
            raise disk_fault(f"{out} can't be written", error, after="; nothing was left behind") from error


def _temporary(out: Path, stack: ExitStack) -> Path:
    """A new directory, locked and removed with ``stack``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked_directory(out.parent):  # nobody removes it before it is locked
        _remove_leftovers(out)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_PARTIAL, dir=out.parent))
        stack.enter_context(locked_directory(temporary))
    stack.callback(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def remove_leftovers(out: Path) -> None:
    """Remove what processes have left that were killed while they wrote ``out``."""
    with suppress(OSError), locked_directory(out.parent):
        _remove_leftovers(out)


def _remove_leftovers(out: Path) -> None:
    for entry in out.parent.iterdir():
        if entry.name.startswith(f".{out.name}.") and entry.name.endswith(_PARTIAL):
            with suppress(OSError):
                if not is_locked_directory(entry):
                    shutil.rmtree(entry, ignore_errors=True)


def _sync(directory: Path) -> None:
    for entry in directory.iterdir():
        sync_path(entry)
    sync_path(directory)
