"""What happened to fine-tuning jobs, and which of their steps can be asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Row, insert, select

from manylora.adapters.registry.rows import storable
from manylora.adapters.registry.schema import Database
from manylora.adapters.registry.tuning.records import CheckpointRecord, EventRecord, Kind, Level
from manylora.adapters.registry.tuning.rows import newest
from manylora.adapters.registry.tuning.tables import checkpoints, events


class TuningEvents:
    """Events and checkpoints of jobs. Blocks on the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, job: str, *, after: str | None, limit: int) -> list[EventRecord] | None:
        """The newest events of a job; None where it has none of the id ``after``."""
        with self._database.read() as connection:
            rows = newest(connection, events, events.c.job == job, after, limit)
        return None if rows is None else [_event(row) for row in rows]

    def since(self, job: str, number: int, limit: int) -> list[EventRecord]:
        """At most ``limit`` events of a job behind the event of that number, the oldest first."""
        wanted = select(events).where((events.c.job == job) & (events.c.number > number))
        with self._database.read() as connection:
            rows = connection.execute(wanted.order_by(events.c.number).limit(limit)).all()
        return [_event(row) for row in rows]

    def checkpoints(self, job: str, *, after: str | None, limit: int) -> list[CheckpointRecord] | None:
        """The latest checkpoints of a job; None where it has none of the id ``after``."""
        with self._database.read() as connection:
            rows = newest(connection, checkpoints, checkpoints.c.job == job, after, limit)
        return None if rows is None else [_checkpoint(row) for row in rows]


def put_event(
    connection: Connection,
    job: str,
    message: str,
    *,
    level: Level = "info",
    kind: Kind = "message",
    data: Mapping[str, Any] | None = None,
) -> None:
    """Record something that happened to a job."""
    connection.execute(
        insert(events).values(
            id=f"ftevent-{uuid4().hex}",
            job=job,
            created=time.time(),
            level=level,
            kind=kind,
            message=storable(message),
            data=json.dumps(dict(data or {}), allow_nan=False),
        )
    )


def put_checkpoints(
    connection: Connection, job: str, found: Sequence[tuple[int, str, Mapping[str, Any]]]
) -> None:
    """Record the steps of a job that can be asked for: step, name and what was measured there."""
    connection.execute(checkpoints.delete().where(checkpoints.c.job == job))
    for step, name, metrics in found:
        connection.execute(
            insert(checkpoints).values(
                id=f"ftckpt_{uuid4().hex}",
                job=job,
                created=time.time(),
                step=step,
                name=name,
                metrics=json.dumps(dict(metrics), allow_nan=False),
            )
        )


def _event(row: Row[Any]) -> EventRecord:
    return EventRecord(
        row.number, row.id, row.job, row.created, row.level, row.kind, row.message, json.loads(row.data)
    )


def _checkpoint(row: Row[Any]) -> CheckpointRecord:
    metrics = json.loads(row.metrics)
    return CheckpointRecord(row.number, row.id, row.job, row.created, row.step, row.name, metrics)
