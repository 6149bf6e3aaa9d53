"""What every writer of files shares: outliving a loss of power, full disks, and modes that follow the umask.

Files and directories are synced to disk here and nowhere else, and here only are their modes changed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from stat import S_IMODE

from manylora.adapters.errors import DiskFull, StoreError

_NO_SPACE = {ENOSPC, EDQUOT, EFBIG}  # on the disk, of a user's share of it, and in one file


def sync_path(path: Path) -> None:
    """Have the disk keep a file's bytes, or a directory's entries.

    Raises:
        OSError: it isn't there, or the disk refused.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """Whether a fault says that there is no space for what was to be written."""
    return isinstance(error, OSError) and error.errno in _NO_SPACE


def disk_fault(what: str, error: OSError, *, after: str = "") -> StoreError:
    """The fault to raise where the disk refused.

    ``what`` says what can't be done, and ``after`` what came of that.
    """
    kind = DiskFull if is_full(error) else StoreError
    return kind(f"{what}: {error.strerror or error}{after}")


@contextmanager
def full_disk_told(what: str) -> Iterator[None]:
    """Turn the want of space into :class:`DiskFull`; other faults of the disk pass."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise disk_fault(what, error) from None


def follow_umask(path: Path) -> None:
    """Give a file, or a directory with all that is in it, the modes that new ones get in that place.

    Libraries write files that only their owner can read, and temporary directories are closed to others.
    Links stay as they are.

    Raises:
        OSError: it isn't there, or the disk refused.
    """
    if path.is_symlink():
        return
    if not path.is_dir():
        path.chmod(_modes_in(path.parent).file)
        return
    modes = _modes_in(path)
    for parent, directories, files in os.walk(path):
        for name in files:
            _change(Path(parent) / name, modes.file)
        for name in directories:
            _change(Path(parent) / name, modes.directory)
    path.chmod(modes.directory)


@dataclass(frozen=True, slots=True)
class _Modes:
    """The modes of what is created in one place."""

    file: int
    directory: int


def _modes_in(directory: Path) -> _Modes:
    """Found by trying: asking for the umask changes it for a moment, in all threads, and is not all.

    A directory may have a default access list, or hand its group on to what is created in it.
    """
    trial = directory / f".modes-{secrets.token_hex(8)}"
    os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    try:
        file = S_IMODE(trial.lstat().st_mode)
    finally:
        trial.unlink()
    trial.mkdir(0o777)
    try:
        return _Modes(file, S_IMODE(trial.lstat().st_mode))
    finally:
        trial.rmdir()


def _change(path: Path, mode: int) -> None:
    if not path.is_symlink():
        path.chmod(mode)
