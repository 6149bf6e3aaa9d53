"""Pages of the rows of a job, and reading and writing its row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, select

from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.registry.tuning.states import JobState, Need
from manylora.adapters.registry.tuning.tables import jobs


def newest(
    connection: Connection, table: Table, only: ColumnElement[bool], after: str | None, limit: int
) -> list[Row[Any]] | None:
    """At most ``limit`` rows of which ``only`` is true, the newest first; behind that of the id ``after``.

    None if there is no such row among them.
    """
    wanted = select(table).where(only).order_by(table.c.number.desc()).limit(limit)
    if after is not None:
        number = connection.execute(select(table.c.number).where(only & (table.c.id == after))).scalar()
        if number is None:
            return None
        wanted = wanted.where(table.c.number < number)
    return list(connection.execute(wanted))


def read_job(connection: Connection, job_id: str) -> JobRecord | None:
    """The job of that id."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    return None if row is None else job_of(row)


def job_of(row: Row[Any]) -> JobRecord:
    """The job that a row tells of."""
    record = json.loads(row.record)
    return JobRecord(
        id=row.id,
        created=row.created,
        status=JobState(row.status),
        needs=Need(row.needs),
        base=row.base,
        training_file=row.training_file,
        asked=record["asked"],
        found=record["found"],
        validation_file=row.validation_file,
        tenant=row.tenant,
        paused_from=None if row.paused_from is None else JobState(row.paused_from),
        began=row.began,
        worker=row.worker,
        leased_until=row.leased_until,
        takes=row.takes,
    )


def packed(asked: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The column ``record`` of a job's row."""
    return json.dumps({"asked": dict(asked), "found": dict(found)}, allow_nan=False)
