"""The files that come in parts: what is known of each upload and its parts, not their bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, func, insert, select

from manylora.adapters.registry.files import FileRecord, check_room, put_file
from manylora.adapters.registry.schema import Database, upload_parts, uploads

PENDING: Final = "pending"  # it takes parts
_KEPT_SECONDS: Final = 24 * 3600  # after its time, that an upload is known


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """One upload."""

    id: str
    created: float  # unix seconds
    expires: float  # unix seconds
    nbytes: int  # as announced
    filename: str
    purpose: str
    mime_type: str
    expires_after: int | None  # seconds that the file stays
    tenant: str | None = None  # whose it is, by id
    status: str = PENDING  # or completed, cancelled, expired
    held: int = 0  # bytes of the parts that came
    file: str | None = None  # the id of what it became
    made_of: str = ""  # what it was completed with


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A part of an upload."""

    id: str
    upload: str
    created: float  # unix seconds
    nbytes: int
    digest: str  # SHA-256 of its bytes, hexadecimal
    owner: str  # where its bytes lie


Check = Callable[[UploadRecord], None]  # raises if it may not be so; in the transaction that would do it


class Uploads:
    """The registry's uploads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: UploadRecord, room: int | None) -> None:
        """Record a new upload, whose announced bytes count from now on.

        Raises:
            OverQuota: its tenant keeps more than ``room`` bytes with them.
        """
        with self._database.write_quietly() as connection:
            check_room(connection, record.tenant, record.nbytes, room)
            row = {"id": record.id, "created": record.created, "tenant": record.tenant}
            connection.execute(insert(uploads).values({**row, **_values(record)}))

    def get(self, upload_id: str) -> UploadRecord | None:
        """The upload, or None."""
        with self._database.read() as connection:
            return _find(connection, upload_id)

    def add_part(self, part: PartRecord, check: Check, *, most: int, room: int | None) -> None:
        """Record a part whose bytes are there, unless its upload has ``most`` already.

        Raises:
            OverQuota: its tenant keeps more than ``room`` bytes with it.
            Whatever ``check`` raises.
        """
        with self._database.write_quietly() as connection:
            record = _checked(connection, part.upload, check)
            of_upload = select(func.count()).where(upload_parts.c.upload == part.upload)
            if int(connection.execute(of_upload).scalar_one()) >= most:
                raise TooManyParts(f"an upload has at most {most:,} parts")
            more = record.held + part.nbytes - max(record.held, record.nbytes)
            if more > 0:  # than what counts for it already
                check_room(connection, record.tenant, more, room)
            _update(connection, replace(record, held=record.held + part.nbytes))
            connection.execute(insert(upload_parts).values(asdict(part)))

    def parts(self, upload_id: str) -> dict[str, PartRecord]:
        """The parts of an upload by their ids."""
        wanted = select(upload_parts).where(upload_parts.c.upload == upload_id)
        with self._database.read() as connection:
            return {row.id: PartRecord(**row._mapping) for row in connection.execute(wanted)}

    def complete(
        self, upload_id: str, file: FileRecord, check: Check, *, made_of: str, room: int | None
    ) -> UploadRecord:
        """Record in one step that an upload has become a file.

        Raises:
            OverQuota: its tenant keeps more than ``room`` bytes.
            Whatever ``check`` raises.
        """
        with self._database.write_quietly() as connection:
            record = _checked(connection, upload_id, check)
            record = replace(record, status="completed", file=file.id, made_of=made_of)
            _update(connection, record)
            put_file(connection, asdict(file), room)
            return record

    def cancel(self, upload_id: str, check: Check) -> UploadRecord:
        """Record that an upload takes no more.

        Raises:
            Whatever ``check`` raises.
        """
        with self._database.write_quietly() as connection:
            record = replace(_checked(connection, upload_id, check), status="cancelled")
            _update(connection, record)
            return record

    def expire(self, now: float) -> list[PartRecord]:
        """End the uploads whose time has come; the parts that nothing needs any more."""
        late = (uploads.c.status == PENDING) & (uploads.c.expires <= now)
        ended = select(uploads.c.id).where(uploads.c.status != PENDING)
        with self._database.read() as connection:
            any_late = connection.execute(select(uploads.c.id).where(late).limit(1)).first()
            wanted = select(upload_parts).where(upload_parts.c.upload.in_(ended))
            left = [PartRecord(**row._mapping) for row in connection.execute(wanted)]
        if any_late is None:
            return left
        with self._database.write_quietly() as connection:
            for row in connection.execute(select(uploads).where(late)).all():
                _update(connection, replace(_record(row), status="expired"))
            return [PartRecord(**row._mapping) for row in connection.execute(wanted)]

    def forget_part(self, part_id: str) -> None:
        """Forget a part whose bytes are freed."""
        with self._database.write_quietly() as connection:
            connection.execute(delete(upload_parts).where(upload_parts.c.id == part_id))

    def forget(self, now: float) -> None:
        """Forget uploads that ended a day ago and have no parts."""
        parts = select(upload_parts.c.upload)
        old = (uploads.c.expires <= now - _KEPT_SECONDS) & (uploads.c.status != PENDING)
        gone = old & uploads.c.id.not_in(parts)
        with self._database.read() as connection:
            if connection.execute(select(uploads.c.id).where(gone).limit(1)).first() is None:
                return
        with self._database.write_quietly() as connection:
            connection.execute(delete(uploads).where(gone))


class TooManyParts(Exception):
    """An upload has as many parts as it may."""


def _checked(connection: Connection, upload_id: str, check: Check) -> UploadRecord:
    record = _find(connection, upload_id)
    assert record is not None, "uploads are forgotten long after they ended"
    check(record)
    return record


def _find(connection: Connection, upload_id: str) -> UploadRecord | None:
    row = connection.execute(select(uploads).where(uploads.c.id == upload_id)).one_or_none()
    return None if row is None else _record(row)


def _update(connection: Connection, record: UploadRecord) -> None:
    connection.execute(uploads.update().where(uploads.c.id == record.id).values(_values(record)))


_IN_COLUMNS: Final = ("id", "created", "expires", "nbytes", "held", "status", "tenant")


def _values(record: UploadRecord) -> dict[str, Any]:
    details = {name: value for name, value in asdict(record).items() if name not in _IN_COLUMNS}
    columns = {name: getattr(record, name) for name in ("expires", "nbytes", "held", "status")}
    return {**columns, "record": json.dumps(details)}


def _record(row: Row[Any]) -> UploadRecord:
    return UploadRecord(**{name: getattr(row, name) for name in _IN_COLUMNS}, **json.loads(row.record))
