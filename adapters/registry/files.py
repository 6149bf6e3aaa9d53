"""The files that clients uploaded and that batches wrote: what is known of them, not their bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, insert, or_, select

from manylora.adapters.registry.pages import page_of
from manylora.adapters.registry.schema import Database, files
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
    owner: str = ""  # the data directory that holds its bytes
    tenant: str | None = None  # whose it is, by id


class Files:
    """The registry's files. What has expired is not there any more."""

    def __init__(self, database: Database, *, owner: str) -> None:
        self._database = database
        self._owner = owner

    def add(self, record: FileRecord) -> FileRecord:
        """Record a file whose bytes lie in this server's directory; one of that id is replaced."""
        row = {**asdict(record), "owner": self._owner}
        with self._database.write_quietly() as connection:
            connection.execute(delete(files).where(files.c.id == record.id))
            connection.execute(insert(files).values(row))
        return FileRecord(**row)

    def get(self, file_id: str, now: float) -> FileRecord | None:
        """The file, or None."""
        with self._database.read() as connection:
            row = connection.execute(select(files).where((files.c.id == file_id) & _lives(now))).one_or_none()
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

    def expired(self, now: float) -> list[str]:
        """The ids of this server's files whose time has come."""
        mine = (files.c.owner == self._owner) & (files.c.expires <= now)
        with self._database.read() as connection:
            return list(connection.execute(select(files.c.id).where(mine)).scalars())

    def own(self) -> set[str]:
        """The ids of all files whose bytes lie in this server's directory."""
        with self._database.read() as connection:
            return set(connection.execute(select(files.c.id).where(files.c.owner == self._owner)).scalars())


def _lives(now: float) -> ColumnElement[bool]:
    return or_(files.c.expires.is_(None), files.c.expires > now)


def _record(row: Row[Any]) -> FileRecord:
    return FileRecord(**row._mapping)
