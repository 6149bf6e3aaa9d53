"""Clients' files: bytes in the data directory, what is known of them in the registry's database."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path
from uuid import uuid4

from manylora.adapters.registry.files import FileRecord, Files
from manylora.adapters.registry.whose import Whose

_PIECE = 1 << 20  # bytes hashed at a time


class StoredFiles:
    """Files by id. Methods block on disk and database unless they are coroutines."""

    def __init__(self, files: Files, directory: Path) -> None:
        """``directory`` holds the bytes, each file's under its id; made when it is first needed."""
        self._files = files
        self._directory = directory

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file lie, if this server has them."""
        return self._directory / file_id

    def working_path(self, name: str) -> Path:
        """Where something that is not a file yet may be written."""
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory / f".{name}"

    def add(
        self,
        path: Path,
        filename: str,
        purpose: str,
        expires_after: int | None = None,
        file_id: str | None = None,
        *,
        tenant: str | None = None,
    ) -> FileRecord:
        """Take over the bytes at ``path``, on the same disk, as a new file.

        Args:
            path: moved.
            filename: its owner's name for it.
            purpose: what it is for.
            expires_after: seconds from now.
            file_id: its id; a file of that id is replaced.
            tenant: whose it is, by id.

        Raises:
            OSError, StoreError: it can't be kept.
        """
        created = time.time()
        digest, nbytes = _hashed(path)
        record = FileRecord(
            file_id or f"file-{uuid4().hex}",
            created,
            nbytes,
            filename,
            purpose,
            None if expires_after is None else created + expires_after,
            digest,
            tenant=tenant,
        )
        self._directory.mkdir(parents=True, exist_ok=True)
        path.replace(self.path(record.id))
        return self._files.add(record)

    def get(self, file_id: str) -> FileRecord | None:
        """The file, or None if there is none of that id, or its time has come."""
        return self._files.get(file_id, time.time())

    def page(
        self, *, purpose: str | None, after: str | None, limit: int, ascending: bool, whose: Whose
    ) -> list[FileRecord] | None:
        """Files by time; None where there is no file ``after`` of theirs."""
        return self._files.page(
            time.time(), purpose=purpose, after=after, limit=limit, ascending=ascending, whose=whose
        )

    def remove(self, file_id: str) -> bool:
        """Forget a file and free its bytes; whether it was there."""
        known = self._files.remove(file_id)
        self.path(file_id).unlink(missing_ok=True)
        return known

    def sweep(self) -> None:
        """Remove files whose time has come, and bytes that no row knows: of an upload that a crash ended."""
        for file_id in self._files.expired(time.time()):
            self.remove(file_id)
        if self._directory.is_dir():
            known = self._files.own()
            for path in self._directory.glob("file-*"):
                if path.name not in known:
                    path.unlink(missing_ok=True)

    async def expire(self) -> None:
        """Remove files whose time has come."""
        for file_id in await asyncio.to_thread(self._files.expired, time.time()):
            await asyncio.to_thread(self.remove, file_id)


def _hashed(path: Path) -> tuple[str, int]:
    digest, nbytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            nbytes += len(piece)
        os.fsync(file.fileno())
    return digest.hexdigest(), nbytes
