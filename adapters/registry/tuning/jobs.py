"""The fine-tuning jobs of a registry, as their owners see and change them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, exists, func, insert, or_, select

from manylora.adapters.registry.schema import Database
from manylora.adapters.registry.tenants.tables import tenants
from manylora.adapters.registry.tuning.events import put_event
from manylora.adapters.registry.tuning.records import JobRecord, KeyReused, RequestKey
from manylora.adapters.registry.tuning.rows import job_of, newest, packed, read_job
from manylora.adapters.registry.tuning.states import OPEN, Actor, JobState, NotAllowed, check
from manylora.adapters.registry.tuning.tables import jobs, keys
from manylora.adapters.registry.whose import EVERYBODY, Whose

_PAGE = 256  # rows read at a time where metadata decides


class TuningJobs:
    """Jobs by id. Blocks on the database; may be shared by threads and processes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: JobRecord, key: RequestKey | None = None) -> JobRecord:
        """Record a new job, which waits for a worker; the job that there is.

        That is an older one where one was asked for with the same ``key``.

        Raises:
            KeyReused: that one was asked for in other words.
        """
        row = {
            "id": record.id,
            "created": record.created,
            "status": record.status,
            "needs": record.needs,
            "base": record.base,
            "training_file": record.training_file,
            "validation_file": record.validation_file,
            "tenant": record.tenant,
            "takes": 0,
            "record": packed(record.asked, record.found),
        }
        with self._database.write_quietly() as connection:
            older = None if key is None else _of_key(connection, key)
            if older is not None:
                return older
            connection.execute(insert(jobs).values(row))
            if key is not None:
                named = {"digest": key.digest, "job": record.id, "body": key.body}
                connection.execute(insert(keys).values(named))
            put_event(connection, record.id, f"Created fine-tuning job: {record.id}")
        return record

    def of_key(self, key: RequestKey) -> JobRecord | None:
        """The job that was asked for with ``key``, or None.

        Raises:
            KeyReused: it was asked for in other words.
        """
        with self._database.read() as connection:
            return _of_key(connection, key)

    def get(self, job_id: str) -> JobRecord | None:
        """The job, or None."""
        with self._database.read() as connection:
            return read_job(connection, job_id)

    def page(
        self,
        *,
        after: str | None,
        limit: int,
        whose: Whose = EVERYBODY,
        metadata: Mapping[str, str] | None = None,
    ) -> list[JobRecord] | None:
        """The newest jobs that have all of ``metadata``; None where there is none ``after`` of theirs."""
        mine = whose.condition(jobs.c.tenant)
        found: list[JobRecord] = []
        with self._database.read() as connection:
            while len(found) < limit:
                rows = newest(connection, jobs, mine, after, _PAGE if metadata else limit)
                if rows is None:
                    return None
                records = [job_of(row) for row in rows]
                found += [record for record in records if _has(record, metadata or {})]
                if not metadata or len(rows) < _PAGE:
                    break
                after = records[-1].id
        return found[:limit]

    def count_open(self, tenant: str | None) -> int:
        """How many jobs of a tenant have not ended."""
        mine = Whose(tenant).condition(jobs.c.tenant) & jobs.c.status.in_(OPEN)
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(jobs).where(mine)).scalar_one())

    def cancel_of_nobody(self) -> None:
        """End the jobs of tenants that were deleted: whoever is called so later has no part in them."""
        gone = ~exists().where(tenants.c.id == jobs.c.tenant)
        wanted = select(jobs.c.id).where(jobs.c.tenant.is_not(None) & gone & jobs.c.status.in_(OPEN))
        with self._database.read() as connection:
            found = list(connection.execute(wanted).scalars())
        for job_id in found:
            with suppress(NotAllowed):  # it has ended meanwhile
                self.cancel(job_id)

    def has_owner(self, job: JobRecord) -> bool:
        """Whether the tenant whose job it is is still there; true of those that are no tenant's."""
        with self._database.read() as connection:
            known = select(tenants.c.id).where(tenants.c.id == job.tenant)
            return job.tenant is None or connection.execute(known).first() is not None

    def reads(self, file_id: str) -> bool:
        """Whether a job that has not ended reads a file."""
        file = or_(jobs.c.training_file == file_id, jobs.c.validation_file == file_id)
        wanted = select(jobs.c.id).where(file & jobs.c.status.in_(OPEN)).limit(1)
        with self._database.read() as connection:
            return connection.execute(wanted).first() is not None

    def cancel(self, job_id: str) -> JobRecord:
        """End a job; its worker sees it and stops.

        Raises:
            NotAllowed: it has ended.
        """
        return self._move(job_id, lambda _: JobState.CANCELLED, "The job has been cancelled")

    def pause(self, job_id: str) -> JobRecord:
        """Have a job wait; its worker sees it, and stops once its step is written down.

        Raises:
            NotAllowed: it has ended, or it waits already.
        """
        return self._move(job_id, lambda _: JobState.PAUSED, "The job has been paused")

    def resume(self, job_id: str) -> JobRecord:
        """Have a paused job go on from where it was.

        Raises:
            NotAllowed: it is not paused.
        """

        def back(job: JobRecord) -> JobState:
            return job.status if job.paused_from is None else job.paused_from

        return self._move(job_id, back, "The job has been resumed")

    def _move(self, job_id: str, target: Callable[[JobRecord], JobState], message: str) -> JobRecord:
        with self._database.write_quietly() as connection:
            job = locked(connection, job_id)
            after = target(job)
            check(job.status, after, Actor.OWNER)
            values: dict[str, Any] = {"status": after, "paused_from": None}
            if after is JobState.PAUSED:
                values["paused_from"] = job.status
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(values))
            put_event(connection, job_id, message)
            return locked(connection, job_id)


def _of_key(connection: Connection, key: RequestKey) -> JobRecord | None:
    row = connection.execute(select(keys).where(keys.c.digest == key.digest)).one_or_none()
    if row is None:
        return None
    if row.body != key.body:
        raise KeyReused(row.job)
    return read_job(connection, row.job)


def locked(connection: Connection, job_id: str) -> JobRecord:
    """The job of that id, which is there, in a transaction that no other mutation overlaps."""
    found = read_job(connection, job_id)
    assert found is not None, "jobs are not deleted while they are used"
    return found


def _has(job: JobRecord, metadata: Mapping[str, str]) -> bool:
    own = job.asked.get("metadata") or {}
    return all(own.get(key) == value for key, value in metadata.items())
