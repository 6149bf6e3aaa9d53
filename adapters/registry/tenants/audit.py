"""The audit log: what was done to adapters, aliases and tenants, by whom and from where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, insert, select

from manylora.adapters.registry.rows import storable
from manylora.adapters.registry.schema import Database
from manylora.adapters.registry.tenants.tables import audit


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One action. Neither keys nor texts of requests are in it."""

    id: str
    time: float  # unix seconds
    who: str  # the id of a tenant's key, or what kind of key it was
    tenant: str  # whose key it was, by name; "": nobody's
    action: str  # method and path of the route
    target: str  # what the path names
    address: str  # from where it came
    request: str  # its id
    status: int  # of the answer
    before: Any = None  # what it was about, where the action tells: JSON-safe
    after: Any = None


class Audit:
    """The registry's audit log. Blocks on the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, records: Sequence[AuditRecord]) -> None:
        """Add records: all of them, or none if this raises."""
        with self._database.write_quietly() as connection:
            connection.execute(insert(audit), [_row(record) for record in records])

    def read(self, *, where: Mapping[str, str], since: float, until: float, limit: int) -> list[AuditRecord]:
        """The latest records first, at most ``limit``, of a time from ``since`` to before ``until``.

        ``where`` says what they are to have: ``who``, ``tenant``, ``action``, ``target``.
        """
        wanted = select(audit).where(audit.c.time >= since, audit.c.time < until)
        for what, value in where.items():
            wanted = wanted.where(audit.c[what] == value)
        ordered = wanted.order_by(audit.c.time.desc(), audit.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(ordered)]

    def remove_before(self, time: float) -> int:
        """Forget what was done before then; how many records went."""
        with self._database.write_quietly() as connection:
            return connection.execute(delete(audit).where(audit.c.time < time)).rowcount


def _row(record: AuditRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "time": record.time,
        "who": record.who,
        "tenant": record.tenant,
        "action": record.action,
        "target": storable(record.target),
        "address": record.address[:64],
        "request": record.request,
        "status": record.status,
        "changes": json.dumps({"before": record.before, "after": record.after}),
    }


def _record(row: Row[Any]) -> AuditRecord:
    told = {name: value for name, value in row._mapping.items() if name != "changes"}
    return AuditRecord(**told, **json.loads(row.changes))
