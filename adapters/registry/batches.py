"""The batches of requests that servers work on: what has become of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select

from manylora.adapters.registry.pages import page_of
from manylora.adapters.registry.schema import Database, batches
from manylora.adapters.registry.whose import EVERYBODY, Whose


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch; ``details`` is the business of whoever works on it."""

    id: str
    created: float  # unix seconds
    status: str
    input_file: str
    details: Mapping[str, Any]
    owner: str = ""  # the data directory of the server that works on it
    tenant: str | None = None  # whose it is, by id


class Batches:
    """The registry's batches."""

    def __init__(self, database: Database, *, owner: str) -> None:
        self._database = database
        self._owner = owner

    def add(self, record: BatchRecord) -> None:
        """Record a new batch, which this server works on."""
        row = {"id": record.id, "created": record.created, "owner": self._owner, "tenant": record.tenant}
        with self._database.write_quietly() as connection:
            connection.execute(insert(batches).values({**row, **_values(record)}))

    def update(self, record: BatchRecord) -> None:
        """Record what has become of a batch."""
        with self._database.write_quietly() as connection:
            connection.execute(batches.update().where(batches.c.id == record.id).values(_values(record)))

    def get(self, batch_id: str) -> BatchRecord | None:
        """The batch, or None."""
        with self._database.read() as connection:
            row = connection.execute(select(batches).where(batches.c.id == batch_id)).one_or_none()
        return None if row is None else _record(row)

    def page(self, *, after: str | None, limit: int, whose: Whose = EVERYBODY) -> list[BatchRecord] | None:
        """The newest batches; None where there is no batch ``after`` of theirs."""
        mine = whose.condition(batches.c.tenant)
        with self._database.read() as connection:
            rows = page_of(connection, batches, after=after, limit=limit, mine=mine)
        return None if rows is None else [_record(row) for row in rows]

    def with_status(self, statuses: Sequence[str], *, input_file: str | None = None) -> list[BatchRecord]:
        """The batches in one of ``statuses``, the oldest first: this server's, or all that read a file."""
        mine = batches.c.owner == self._owner if input_file is None else batches.c.input_file == input_file
        wanted = select(batches).where(mine & batches.c.status.in_(statuses))
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(wanted.order_by(batches.c.created))]


def _values(record: BatchRecord) -> dict[str, str]:
    details = json.dumps(dict(record.details))
    return {"status": record.status, "input_file": record.input_file, "record": details}


def _record(row: Row[Any]) -> BatchRecord:
    details = json.loads(row.record)
    return BatchRecord(row.id, row.created, row.status, row.input_file, details, row.owner, row.tenant)
