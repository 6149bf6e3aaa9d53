"""The files that clients uploaded and that batches wrote: what is known of them, not their bytes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, delete, func, insert, or_, select

from manylora.adapters.errors import OverQuota
from manylora.adapters.registry.pages import page_of
from manylora.adapters.registry.schema import Database, files, upload_parts, uploads
from manylora.adapters.registry.whose import EVERYBODY, Whose


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file."""

    id: str
    created: float  # unix seconds
    nbytes: int
    filename: str
    purpose: str
    expires: float | None  # unix seconds
    digest: str  # SHA-256 of its bytes, hexadecimal
    owner: str = (
        ""  # where its bytes lie: the data directory that holds them, or a storage that servers share
    )
    tenant: str | None = None  # whose it is, by id


class Files:
    """The registry's files. What has expired is not there any more."""

    def __init__(self, database: Database, *, owner: str) -> None:
        """``owner`` is the data directory of this process."""
        self._database = database
        self.owner = owner

    def add(self, record: FileRecord, room: int | None = None) -> FileRecord:
        """Record a file; one of that id is replaced. Without ``owner`` its bytes lie in this data directory.

        Raises:
            OverQuota: its tenant keeps more than ``room`` bytes with it.
        """
        row = {**asdict(record), "owner": record.owner or self.owner}
        with self._database.write_quietly() as connection:
            put_file(connection, row, room)
        return FileRecord(**row)

    def get(self, file_id: str, now: float | None) -> FileRecord | None:
        """The file, or None; without ``now`` also one that has expired and still lies there."""
        wanted = files.c.id == file_id if now is None else (files.c.id == file_id) & _lives(now)
        with self._database.read() as connection:
            row = connection.execute(select(files).where(wanted)).one_or_none()
        return None if row is None else _record(row)

    def page(
        self,
        now: float,
        *,
        purpose: str | None,
        after: str | None,
        limit: int,
        ascending: bool,
        whose: Whose = EVERYBODY,
    ) -> list[FileRecord] | None:
        """Files by time; None where there is no file ``after`` of theirs."""
        only = _lives(now) if purpose is None else _lives(now) & (files.c.purpose == purpose)
        mine = whose.condition(files.c.tenant)
        with self._database.read() as connection:
            rows = page_of(
                connection, files, after=after, limit=limit, ascending=ascending, only=only, mine=mine
            )
        return None if rows is None else [_record(row) for row in rows]

    def remove(self, file_id: str) -> bool:
        """Forget a file; whether it was there."""
        with self._database.write_quietly() as connection:
            return connection.execute(delete(files).where(files.c.id == file_id)).rowcount > 0

    def expired(self, now: float, owners: Collection[str]) -> list[str]:
        """The ids of files whose time has come, and whose bytes lie in one of those places."""
        wanted = files.c.owner.in_(list(owners)) & (files.c.expires <= now)
        with self._database.read() as connection:
            return list(connection.execute(select(files.c.id).where(wanted)).scalars())

    def own(self) -> set[str]:
        """The ids of all files and parts of files whose bytes lie in this server's directory."""
        with self._database.read() as connection:
            return {
                name
                for table in (files, upload_parts)
                for name in connection.execute(
                    select(table.c.id).where(table.c.owner == self.owner)
                ).scalars()
            }

    def knows(self, name: str) -> bool:
        """Whether that is the id of a file, or of a part of one."""
        with self._database.read() as connection:
            return any(
                connection.execute(select(table.c.id).where(table.c.id == name)).first() is not None
                for table in (files, upload_parts)
            )

    def bytes_of(self, tenant: str | None) -> int:
        """How many bytes the files and open uploads of a tenant have."""
        with self._database.read() as connection:
            return kept_bytes(connection, tenant)


def put_file(connection: Connection, row: dict[str, Any], room: int | None) -> None:
    """Insert a file's row in place of one of that id.

    Raises:
        OverQuota: its tenant keeps more than ``room`` bytes with it.
    """
    connection.execute(delete(files).where(files.c.id == row["id"]))
    check_room(connection, row["tenant"], row["nbytes"], room)
    connection.execute(insert(files).values(row))


def check_room(connection: Connection, tenant: str | None, nbytes: int, room: int | None) -> None:
    """Raise OverQuota if a tenant would keep more than ``room`` bytes with ``nbytes`` more; None: any."""
    if room is None:
        return
    used = kept_bytes(connection, tenant)
    if used + nbytes > room:
        raise OverQuota(
            f"your files and uploads take {used:,} bytes of {room:,}, and this has {nbytes:,}: delete some"
        )


def kept_bytes(connection: Connection, tenant: str | None) -> int:
    """Bytes of a tenant's files, and of its open uploads: as announced, or as they came if that is more."""
    held = func.coalesce(func.sum(files.c.nbytes), 0)
    open_bytes = case((uploads.c.held > uploads.c.nbytes, uploads.c.held), else_=uploads.c.nbytes)
    coming = func.coalesce(func.sum(open_bytes), 0)
    of_files = connection.execute(select(held).where(files.c.tenant == tenant)).scalar_one()
    of_uploads = connection.execute(
        select(coming).where((uploads.c.tenant == tenant) & (uploads.c.status == "pending"))
    ).scalar_one()
    return int(of_files) + int(of_uploads)


def _lives(now: float) -> ColumnElement[bool]:
    return or_(files.c.expires.is_(None), files.c.expires > now)


def _record(row: Row[Any]) -> FileRecord:
    return FileRecord(**row._mapping)
