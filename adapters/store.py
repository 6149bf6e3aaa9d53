"""Revisions on disk: immutable copies of artifacts, each in a directory named by its digest.

Publishing is a copy to a temporary directory, fsync, and one rename, so a revision is either there as
a whole or not at all, whenever the process is killed. One process owns a store at a time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from adapters.errors import AdapterNotFound, ArtifactError, StoreError
from adapters.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    FileFault,
    artifact_digest,
    open_regular,
    parse_config_bytes,
    read_config_bytes,
    read_into,
)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOCK = ".lock"
_TEMPORARY = ".tmp-"
_CHUNK = 1 << 20  # bytes copied at a time


class RevisionStore:
    """The revisions under ``root``. Thread-safe; a second store on the same root can't be opened."""

    def __init__(self, root: Path) -> None:
        """Open the store, creating ``root``, and sweep away what a killed process left half done.

        Raises:
            StoreError: another process (or store) has it open, or the directory can't be used.
        """
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = (root / _LOCK).open("wb")
        except OSError as error:
            raise StoreError(f"the revision store {root} can't be opened: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sweep()
        except BlockingIOError:
            self._lock.close()
            raise StoreError(f"the revision store {root} is in use by another server") from None
        except OSError as error:
            self._lock.close()
            raise StoreError(f"the revision store {root} can't be opened: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process open the store. Closing twice is fine."""
        self._lock.close()

    def publish(self, directory: Path) -> tuple[str, Path]:
        """Copy the artifact in ``directory`` into the store; its digest and the revision's directory.

        Only the two files of an artifact are copied, whatever their size: validate first. The digest
        is of the bytes that were copied, so comparing it with that of the validated artifact tells
        whether the source has changed in between.
        Publishing what is already there changes nothing.

        Raises:
            ArtifactError: a file is missing, is not a regular file or (the config) is not JSON.
            StoreError: the disk refused.
        """
        try:
            temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.root))
            try:
                digest = _copy(directory, temporary)
                return digest, self._move_in(temporary, digest)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except FileFault as fault:
            raise ArtifactError([str(fault)]) from None
        except OSError as error:
            raise StoreError(f"the revision can't be written to {self.root}: {error.strerror}") from None

    def path(self, digest: str) -> Path:
        """The directory of a revision, by its full digest.

        Raises:
            AdapterNotFound: there is no such revision.
        """
        path = self.root / digest
        if not _DIGEST.fullmatch(digest) or not path.is_dir():
            raise AdapterNotFound(f"no revision {digest[:64]!r} in the store")
        return path

    def digests(self) -> list[str]:
        """The full digests of all revisions, sorted."""
        return sorted(entry.name for entry in self.root.iterdir() if _DIGEST.fullmatch(entry.name))

    def remove(self, digest: str) -> int:
        """Delete a revision and return the bytes of disk it took.

        Raises:
            AdapterNotFound: there is no such revision.
            StoreError: the disk refused.
        """
        path = self.path(digest)
        try:
            temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.root))
            # Out of the way in one step: a kill half way through leaves rubbish, never half a revision.
            path.rename(temporary / digest)
            freed = sum(file.stat().st_size for file in (temporary / digest).iterdir())
            shutil.rmtree(temporary)
        except FileNotFoundError:
            raise AdapterNotFound(f"no revision {digest!r} in the store") from None
        except OSError as error:
            raise StoreError(f"revision {digest} can't be removed: {error.strerror}") from None
        return freed

    def _move_in(self, temporary: Path, digest: str) -> Path:
        target = self.root / digest
        try:
            temporary.rename(target)
        except OSError as error:  # somebody published the same content before: that copy stays
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            _sync_directory(self.root)
        return target

    def _sweep(self) -> None:
        for entry in self.root.iterdir():
            if entry.name.startswith(_TEMPORARY):
                shutil.rmtree(entry)


def _copy(source: Path, target: Path) -> str:
    """Copy both files of the artifact, each read once, and return its digest."""
    content = read_config_bytes(source / CONFIG_NAME)
    digest = artifact_digest(parse_config_bytes(content))
    with (target / CONFIG_NAME).open("wb") as copy:
        copy.write(content)
        _sync(copy)
    with open_regular(source / WEIGHTS_NAME) as file, (target / WEIGHTS_NAME).open("wb") as copy:
        left = os.fstat(file.fileno()).st_size
        buffer = memoryview(bytearray(_CHUNK))
        while left:
            chunk = buffer[: min(left, _CHUNK)]
            read_into(file, chunk, WEIGHTS_NAME)
            digest.update(chunk)
            copy.write(chunk)
            left -= len(chunk)
        _sync(copy)
    target.chmod(0o755)
    _sync_directory(target)
    return digest.hexdigest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
