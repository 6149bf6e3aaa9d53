"""Clients' files: bytes in the data directory or a storage that servers share, the rest in the registry."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from manylora.adapters.registry.files import FileRecord, Files
from manylora.adapters.registry.whose import Whose
from manylora.server.errors import ObjectNotFound
from manylora.server.files.readers import FileReader
from manylora.server.files.storage import PIECE, TEMPORARY, DirectoryStorage, Storage, UrlStorage

_SENDING = "sending-"  # marks, in the directory, what is on its way to a shared storage
_LEFT_SECONDS = 3600  # the longest that a file takes from its last byte to its row


@dataclass(frozen=True, slots=True)
class Bytes:
    """What was counted of a file's bytes."""

    digest: str  # SHA-256, hexadecimal
    md5: str  # hexadecimal
    nbytes: int


class StoredFiles:
    """Files by id. Methods block on disk and database unless they are coroutines."""

    def __init__(self, files: Files, directory: Path, files_url: str | None = None) -> None:
        """
        Args:
            files: the registry's.
            directory: holds the bytes, each file's under its id, and what is being written; made when it is
                first needed.
            files_url: the folder of a storage that holds the bytes of new files instead.

        Raises:
            ConfigError: the URL is malformed, or its protocol unknown here.
        """
        self._files = files
        self._directory = directory
        self._own = DirectoryStorage(directory, files.owner)
        self._shared = None if files_url is None else UrlStorage(files_url, directory)

    def working_path(self, name: str) -> Path:
        """Where something that is not a file yet may be written."""
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory / f".{name}"

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """An empty directory on the same disk, for as long as the block runs."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=self._directory) as place:
            yield Path(place)

    def add(
        self,
        path: Path,
        filename: str,
        purpose: str,
        expires_after: int | None = None,
        file_id: str | None = None,
        *,
        tenant: str | None = None,
        room: int | None = None,
    ) -> FileRecord:
        """Take over the bytes at ``path``, on the data directory's disk, as a new file.

        Args:
            path: gone afterwards, if all went well.
            filename: its owner's name for it.
            purpose: what it is for.
            expires_after: seconds from now.
            file_id: its id; a file of that id is replaced.
            tenant: whose it is, by id.
            room: how many bytes the tenant may keep in all.

        Raises:
            OverQuota: there is no such room.
            OSError, StoreError: it can't be kept.
        """
        created = time.time()
        counted = count_bytes(path)
        record = FileRecord(
            file_id or f"file-{uuid4().hex}",
            created,
            counted.nbytes,
            filename,
            purpose,
            None if expires_after is None else created + expires_after,
            counted.digest,
            self.storage.owner,
            tenant,
        )
        with self.keeping(path, record.id):
            return self._files.add(record, room)

    @property
    def storage(self) -> Storage:
        """Where new bytes go."""
        return self._own if self._shared is None else self._shared

    @contextmanager
    def keeping(self, path: Path, name: str) -> Iterator[None]:
        """Keep the bytes at ``path`` under ``name``, if the block, which records them, does not raise."""
        mark = None if self._shared is None else self.working_path(f"{_SENDING}{name}")
        if mark is not None:
            mark.touch()
        self.storage.put(path, name)
        try:
            yield
        except BaseException:
            self.storage.take_back(path, name)
            if mark is not None:
                mark.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)
        if mark is not None:
            mark.unlink(missing_ok=True)

    def get(self, file_id: str) -> FileRecord | None:
        """The file, or None if there is none of that id, or its time has come."""
        return self._files.get(file_id, time.time())

    def pieces(self, record: FileRecord) -> Iterator[bytes]:
        """The bytes of a file, a piece at a time.

        Raises:
            ObjectNotFound: before the first, if they are on another server, or gone.
            StorageUnreachable: they can't be read for now.
        """
        try:
            yield from self.storage_of(record.owner).pieces(record.id)
        except FileNotFoundError:
            raise _gone(record.id) from None

    @contextmanager
    def local(self, file_id: str) -> Iterator[Path]:
        """A file of this machine with the bytes of one, to be read only; also if its time has come meanwhile.

        Raises:
            ObjectNotFound: there is none of that id, or its bytes are on another server, or gone.
            StorageUnreachable: they can't be read for now.
        """
        record = self._files.get(file_id, None)
        if record is None:
            raise ObjectNotFound(f"No such File object: {file_id}")
        with ExitStack() as held:
            try:
                path = held.enter_context(self.storage_of(record.owner).local(file_id))
            except FileNotFoundError:
                raise _gone(file_id) from None
            yield path

    def local_path(self, record: FileRecord) -> Path | None:
        """The file itself, if its bytes lie in this server's directory."""
        path = self._own.path(record.id)
        return path if record.owner == self._own.owner and path.is_file() else None

    def storage_of(self, owner: str) -> Storage:
        """The place of bytes that the registry calls so.

        Raises:
            ObjectNotFound: it is another server's directory, or a storage that this one was not given.
        """
        if self._shared is not None and owner == self._shared.owner:
            return self._shared
        if owner == self._own.owner:
            return self._own
        raise ObjectNotFound("The bytes are on another server")

    def page(
        self, *, purpose: str | None, after: str | None, limit: int, ascending: bool, whose: Whose
    ) -> list[FileRecord] | None:
        """Files by time; None where there is no file ``after`` of theirs."""
        return self._files.page(
            time.time(), purpose=purpose, after=after, limit=limit, ascending=ascending, whose=whose
        )

    def bytes_of(self, tenant: str | None) -> int:
        """How many bytes the files and open uploads of a tenant have."""
        return self._files.bytes_of(tenant)

    def remove(self, file_id: str) -> bool:
        """Forget a file and free its bytes; whether it was there.

        Raises:
            StoreError: it can't be.
        """
        record = self._files.get(file_id, None)
        if record is None or not self._files.remove(file_id):
            return False
        with suppress(ObjectNotFound):  # another server's directory, which it sweeps itself
            self.storage_of(record.owner).remove(file_id)
        return True

    def sweep(self) -> None:
        """Remove what crashes left an hour ago or earlier: bytes that no row knows."""
        for path in self._left(f"{TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)
        for mark in self._left(f".{_SENDING}*"):
            name = mark.name.removeprefix(f".{_SENDING}")
            if self._shared is not None and not self._files.knows(name):
                self._shared.remove(name)
            mark.unlink(missing_ok=True)
        known = self._files.own()
        for path in (*self._left("file-*"), *self._left("part_*")):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def _left(self, pattern: str) -> Iterator[Path]:
        """What is old enough that no other process of this directory is still at it."""
        for path in self._directory.glob(pattern) if self._directory.is_dir() else ():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _LEFT_SECONDS:
                    yield path

    async def expire(self, reader_of: FileReader) -> None:
        """Remove files whose time has come and that nothing needs any more."""
        owners = [self._own.owner, *([] if self._shared is None else [self._shared.owner])]
        for file_id in await asyncio.to_thread(self._files.expired, time.time(), owners):
            if await reader_of(file_id) is None:
                await asyncio.to_thread(self.remove, file_id)


def count_bytes(path: Path) -> Bytes:
    """Hash a file, which is on the disk afterwards."""
    sha256, md5, nbytes = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            sha256.update(piece)
            md5.update(piece)
            nbytes += len(piece)
        os.fsync(file.fileno())
    return Bytes(sha256.hexdigest(), md5.hexdigest(), nbytes)


def _gone(file_id: str) -> ObjectNotFound:
    return ObjectNotFound(f"The bytes of file '{file_id}' are not there any more")
