"""Making files outlive a loss of power. Every file and directory that is synced to disk is synced here."""

from __future__ import annotations

import os
from pathlib import Path


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
