"""What every writer of files shares: having them outlive a loss of power, and the modes that the umask gives.

Files and directories are synced to disk here and nowhere else, and here only are their modes changed.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE


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
