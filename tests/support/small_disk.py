"""A real file system of a few megabytes, to be filled to its last block."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path

import pytest

KINDS = ("tmpfs", "ext4")
BLOCK = 4096

_FILLER = "filler"


@dataclass(frozen=True)
class SmallDisk:
    """A mounted file system, and the file that takes what is free of it."""

    root: Path

    def fill(self, leave: int = 0) -> None:
        """Take all but ``leave`` bytes of what is free."""
        filler = self.root / _FILLER
        with filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 16, BLOCK):
                with suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
            file.truncate(max(0, file.tell() - file.tell() % BLOCK - leave))
            os.fsync(file.fileno())

    def empty(self) -> None:
        """Give back what :meth:`fill` took."""
        (self.root / _FILLER).unlink(missing_ok=True)

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        return shutil.disk_usage(self.root).free

    @property
    def is_full(self) -> bool:
        """Whether not one more block can be written."""
        probe = self.root / "probe"
        try:
            with probe.open("wb", buffering=0) as file:
                return file.write(b"x" * BLOCK) < BLOCK
        except OSError as error:
            return error.errno == ENOSPC
        finally:
            probe.unlink(missing_ok=True)


@contextmanager
def small_disk(directory: Path, kind: str = "tmpfs", megabytes: int = 16) -> Iterator[SmallDisk]:
    """Mount a file system below ``directory``; where that is not allowed, the test is skipped."""
    root = directory / "disk"
    root.mkdir()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(root)]
    else:
        image = directory / "image"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is not installed")
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(root)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a {kind} can't be mounted here: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)
