"""Uploads: files that come in parts, and are put together when the last one is there."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

from manylora.adapters.errors import StoreError
from manylora.adapters.registry.files import FileRecord
from manylora.adapters.registry.uploads import PENDING, Check, PartRecord, TooManyParts, UploadRecord, Uploads
from manylora.server.errors import ObjectInUse, ObjectNotFound, RequestError
from manylora.server.files.stored_files import StoredFiles, count_bytes

logger = logging.getLogger(__name__)

LIFETIME: Final = 3600  # seconds that an upload takes parts
_REPEATED: Final = (
    2  # times what was announced that may come: clients send parts again when they get no answer
)


class FileUploads:
    """Uploads by id. What they hold is on the disk and in the registry, and outlives the process."""

    def __init__(self, uploads: Uploads, files: StoredFiles, max_parts: int) -> None:
        """``files`` takes the parts and what is made of them; an upload has at most ``max_parts``."""
        self._uploads, self._files, self.max_parts = uploads, files, max_parts
        self._completing: set[str] = set()  # ids

    async def create(
        self,
        filename: str,
        purpose: str,
        mime_type: str,
        nbytes: int,
        expires_after: int | None,
        *,
        tenant: str | None,
        room: int | None,
    ) -> UploadRecord:
        """Begin an upload of ``nbytes``, which count as kept from now on.

        Raises:
            OverQuota: the tenant keeps more than ``room`` bytes with them.
        """
        now = time.time()
        record = UploadRecord(
            f"upload_{uuid4().hex}",
            now,
            now + LIFETIME,
            nbytes,
            filename,
            purpose,
            mime_type,
            expires_after,
            tenant,
        )
        await asyncio.to_thread(self._uploads.add, record, room)
        return record

    async def get(self, upload_id: str) -> UploadRecord | None:
        """The upload, or None."""
        return await asyncio.to_thread(self._uploads.get, upload_id)

    async def add_part(self, upload: UploadRecord, path: Path, room: int | None) -> PartRecord:
        """Take over the bytes at ``path`` as a part.

        Raises:
            RequestError: the upload takes no more, or not as much.
            OverQuota: the tenant keeps more than ``room`` bytes with them.
            OSError, StoreError: they can't be kept.
        """
        counted = await asyncio.to_thread(count_bytes, path)
        part = PartRecord(
            f"part_{uuid4().hex}",
            upload.id,
            time.time(),
            counted.nbytes,
            counted.digest,
            self._files.storage.owner,
        )

        def check(now: UploadRecord) -> None:
            check_open(now)
            _check_fits(now, part.nbytes)

        check(upload)  # before anything is moved
        try:
            await asyncio.to_thread(self._keep, path, part, check, room)
        except TooManyParts as error:
            raise RequestError(f"Upload '{upload.id}' can't take more: {error}", "data") from None
        return part

    def _keep(self, path: Path, part: PartRecord, check: Check, room: int | None) -> None:
        with self._files.keeping(path, part.id):
            self._uploads.add_part(part, check, most=self.max_parts, room=room)

    async def complete(
        self, upload: UploadRecord, part_ids: Sequence[str], md5: str | None, room: int | None
    ) -> tuple[UploadRecord, FileRecord | None]:
        """Put parts together in that order, as a new file; asked again in the same words, the same file.

        Raises:
            RequestError: the upload takes no more; the parts are not its own, or not what was announced.
            ObjectInUse: somebody is doing it.
            ObjectNotFound: a part is on another server.
            OverQuota: the tenant keeps more than ``room`` bytes.
            OSError, StoreError: the file can't be kept.
        """
        made_of = hashlib.sha256("\n".join([*part_ids, (md5 or "").lower()]).encode()).hexdigest()
        if upload.status == "completed" and upload.made_of == made_of and upload.file is not None:
            return upload, await asyncio.to_thread(self._files.get, upload.file)
        check_open(upload)
        if upload.id in self._completing:
            raise ObjectInUse(f"Upload '{upload.id}' is being completed")
        self._completing.add(upload.id)
        try:
            parts = _chosen(upload, part_ids, await asyncio.to_thread(self._uploads.parts, upload.id))
            done = await asyncio.to_thread(self._assemble, upload, parts, md5, made_of, room)
        finally:
            self._completing.discard(upload.id)
        await self._free_of(upload)
        return done

    def _assemble(
        self,
        upload: UploadRecord,
        parts: Sequence[PartRecord],
        md5: str | None,
        made_of: str,
        room: int | None,
    ) -> tuple[UploadRecord, FileRecord]:
        with self._files.temporary() as place:
            path = place / "file"
            with path.open("xb") as file:
                for part in parts:
                    self._append(part, file.write)
            counted = count_bytes(path)
            if md5 is not None and counted.md5 != md5.lower():
                raise RequestError(f"The bytes have the MD5 {counted.md5}, not 'md5'", "md5")
            created = time.time()
            expires = None if upload.expires_after is None else created + upload.expires_after
            file_id = f"file-{uuid4().hex}"
            found = FileRecord(
                file_id,
                created,
                counted.nbytes,
                upload.filename,
                upload.purpose,
                expires,
                counted.digest,
                self._files.storage.owner,
                upload.tenant,
            )
            with self._files.keeping(path, file_id):
                return self._uploads.complete(upload.id, found, check_open, made_of=made_of, room=room), found

    def _append(self, part: PartRecord, write: Callable[[bytes], int]) -> None:
        digest = hashlib.sha256()
        try:
            for piece in self._files.storage_of(part.owner).pieces(part.id):
                digest.update(piece)
                write(piece)
        except FileNotFoundError:
            raise ObjectNotFound(
                f"The bytes of part '{part.id}' are not there any more", "part_ids"
            ) from None
        if digest.hexdigest() != part.digest:
            raise ObjectNotFound(f"The bytes of part '{part.id}' are damaged: send it again", "part_ids")

    async def cancel(self, upload: UploadRecord) -> UploadRecord:
        """End an upload, and free its parts.

        Raises:
            RequestError: it has ended.
        """
        record = await asyncio.to_thread(self._uploads.cancel, upload.id, check_open)
        await self._free_of(upload)
        return record

    async def expire(self) -> None:
        """End uploads whose time has come, and free the parts of all that ended.

        Raises:
            StoreError: it can't be done for now.
        """
        await self._free(await asyncio.to_thread(self._uploads.expire, time.time()))
        await asyncio.to_thread(self._uploads.forget, time.time())

    async def _free_of(self, upload: UploadRecord) -> None:
        """Free the parts of an upload that has ended; what can't be freed now is later, by ``expire``."""
        try:
            await self._free([*(await asyncio.to_thread(self._uploads.parts, upload.id)).values()])
        except (OSError, StoreError) as error:
            logger.warning("the parts of upload %s stay for now: %s", upload.id, error)

    async def _free(self, parts: Sequence[PartRecord]) -> None:
        for part in parts:
            try:
                storage = self._files.storage_of(part.owner)
            except ObjectNotFound:  # another server's directory: it does it
                continue
            await asyncio.to_thread(storage.remove, part.id)
            await asyncio.to_thread(self._uploads.forget_part, part.id)


def status_of(upload: UploadRecord) -> str:
    """What has become of an upload by now."""
    late = upload.status == PENDING and upload.expires <= time.time()
    return "expired" if late else upload.status


def check_open(upload: UploadRecord) -> None:
    """Raise RequestError unless an upload takes parts."""
    status = status_of(upload)
    if status != PENDING:
        raise RequestError(f"Upload '{upload.id}' is {status}", "upload_id", "upload_not_pending")


def _check_fits(upload: UploadRecord, nbytes: int) -> None:
    if nbytes == 0:
        raise RequestError("A part has at least one byte", "data")
    if nbytes > upload.nbytes or upload.held + nbytes > _REPEATED * upload.nbytes:
        raise RequestError(
            f"Upload '{upload.id}' is of {upload.nbytes} bytes; {upload.held} are there, and this part has "
            f"{nbytes}",
            "data",
        )


def _chosen(upload: UploadRecord, part_ids: Sequence[str], known: dict[str, PartRecord]) -> list[PartRecord]:
    """The parts of those ids, if they are the file that was announced."""
    for place, part_id in enumerate(part_ids):
        if part_id not in known:
            raise RequestError(f"'part_ids[{place}]' is no part of upload '{upload.id}'", "part_ids")
    if len(set(part_ids)) < len(part_ids):
        raise RequestError("'part_ids' names a part twice", "part_ids")
    parts = [known[part_id] for part_id in part_ids]
    total = sum(part.nbytes for part in parts)
    if total != upload.nbytes:
        raise RequestError(
            f"The parts have {total} bytes, but {upload.nbytes} were announced", "part_ids", "bytes_differ"
        )
    return parts
