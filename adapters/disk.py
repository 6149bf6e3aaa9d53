"""Making files outlive a loss of power, and telling a full disk from one that is broken.

Every file and directory that is synced to disk is synced here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

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
