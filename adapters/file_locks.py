"""Advisory locks on files and directories, which the kernel drops when their process dies, however it dies.

All locks between processes are taken here. The module imports nothing but the standard library, so that the
kernels may use it when they compile, though they know nothing of adapters.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDWR | os.O_CLOEXEC


@contextmanager
def locked(path: Path, *, shared: bool = False, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock on the file ``path``, alone or with others who share it; waits for it.

    The file is created where it is missing. ``on_wait`` is called before this waits for somebody else. Each
    call has a descriptor of its own, so that threads of one process exclude each other as well.
    """
    with _opened(path, _FILE | os.O_CREAT) as descriptor:
        if on_wait is not None and not _lock(descriptor, shared=shared, wait=False):
            on_wait()
        _lock(descriptor, shared=shared)
        yield


def try_lock(path: Path, *, create: bool = False) -> BinaryIO | None:
    """Open ``path`` and lock it, unless somebody holds its lock; closing the file lets go of it.

    Raises:
        OSError: it isn't there and was not to be created, or it can't be opened.
    """
    file = os.fdopen(os.open(path, _FILE | (os.O_CREAT if create else 0), 0o666), "r+b")
    try:
        if _lock(file.fileno(), wait=False):
            return file
    except OSError:
        file.close()
        raise
    file.close()
    return None


@contextmanager
def locked_directory(path: Path) -> Iterator[None]:
    """Hold the lock on a directory that is there; waits for it."""
    with _opened(path, _DIRECTORY) as descriptor:
        _lock(descriptor)
        yield


def is_locked_directory(path: Path) -> bool:
    """Whether somebody holds a directory's lock.

    Raises:
        OSError: it isn't there, or it can't be opened.
    """
    with _opened(path, _DIRECTORY) as descriptor:
        return not _lock(descriptor, wait=False)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Whether the lock is held now; with ``wait`` it always is."""
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
