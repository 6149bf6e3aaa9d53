"""Who works on which fine-tuning job: leases that their holders renew, and that others take once they don't.

A job is worked on by one process at a time. That process writes only as long as the lease is its own, in the
transaction that writes, so one that was given up for dead, and lives, changes nothing any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, or_, select

from manylora.adapters.registry.schema import Database
from manylora.adapters.registry.tuning.events import put_checkpoints, put_event
from manylora.adapters.registry.tuning.jobs import locked
from manylora.adapters.registry.tuning.records import JobRecord, Level
from manylora.adapters.registry.tuning.rows import job_of, packed
from manylora.adapters.registry.tuning.states import WORKED_ON, Actor, JobState, Need, check
from manylora.adapters.registry.tuning.tables import jobs

LEASE_SECONDS: Final = 30.0  # without a word from its worker, a job is another's to take
MAX_TAKES: Final = 3  # of a job by workers that die before it gets on
_CANDIDATES = 1000  # looked at for the next job
DIED: Final = "worker_died"  # the code of a job whose workers die


class LeaseLost(Exception):
    """The job is not the worker's any more: it was cancelled, or another has it."""


@dataclass(frozen=True, slots=True)
class Said:
    """An event that a worker tells of."""

    message: str
    level: Level = "info"
    metrics: Mapping[str, Any] | None = None  # it is what was measured
    data: Mapping[str, Any] | None = None
    sample: Mapping[str, Any] | None = None  # it is what was answered


Checkpoints = list[tuple[int, str, Mapping[str, Any]]]  # step, name, what was measured


class TuningLeases:
    """The leases of one worker. Blocks on the database; may be shared by its threads."""

    def __init__(self, database: Database, worker: str) -> None:
        self._database = database
        self.worker = worker

    def waiting(self, needs: Collection[Need], base: str, *, but: Collection[str] = ()) -> bool:
        """Whether there is a job that a worker could take, ``but`` for some, by id."""
        with self._database.read() as connection:
            wanted = select(jobs.c.id).where(_free(needs, base, time.time(), but)).limit(1)
            return connection.execute(wanted).first() is not None

    def next(self, needs: Collection[Need], base: str, *, per_tenant: int | None = None) -> JobRecord | None:
        """The job that :meth:`take` would take now."""
        with self._database.read() as connection:
            return _next(connection, needs, base, per_tenant)

    def take(
        self,
        needs: Collection[Need],
        base: str,
        *,
        per_tenant: int | None = None,
        fits: Callable[[JobRecord], bool] = lambda _: True,
        but: Collection[str] = (),
    ) -> JobRecord | None:
        """Take the job that is next, if there is one and it ``fits``; no other is taken before it.

        Those of the ids ``but`` are left out.

        What was begun comes first; then whose jobs are worked on the least; then who has waited longest since
        one of theirs began; then what came first. A tenant that has ``per_tenant`` jobs in training waits.

        A job that nobody has got anywhere with fails in its turn.
        """
        while True:
            with self._database.write_quietly() as connection:
                job = _next(connection, needs, base, per_tenant, but)
                if job is None:
                    return None
                if job.takes < MAX_TAKES:
                    if not fits(job):
                        return None
                    row = {"worker": self.worker, "leased_until": time.time() + LEASE_SECONDS}
                    _set(connection, job.id, {**row, "takes": job.takes + 1})
                    return locked(connection, job.id)
                _end_dead(connection, job)

    def renew(self, job_id: str) -> JobRecord:
        """Go on having a job; what its owner made of it meanwhile.

        Raises:
            LeaseLost: it is another's, or nobody's.
        """
        with self._database.write_quietly() as connection:
            job = self._own(connection, job_id)
            _set(connection, job_id, {"leased_until": time.time() + LEASE_SECONDS})
            return job

    def release(self, job_id: str) -> None:
        """Leave a job for others to take up, if it is one's own. That it was taken does not count."""
        mine = (jobs.c.id == job_id) & (jobs.c.worker == self.worker)
        with self._database.write_quietly() as connection:
            row = {"worker": None, "leased_until": None, "takes": 0}
            connection.execute(jobs.update().where(mine).values(row))

    def release_dead(self) -> None:
        """Leave all jobs of this worker, which has ended however, for others to take up."""
        with self._database.write_quietly() as connection:
            row = {"worker": None, "leased_until": None}
            connection.execute(jobs.update().where(jobs.c.worker == self.worker).values(row))

    def tell(self, job_id: str, *said: Said, got_on: bool = False, **found: Any) -> JobRecord:
        """Record what happened to a job, and what was ``found`` out; ``got_on``: it made progress.

        Raises:
            LeaseLost: the job is not this worker's.
        """
        with self._database.write_quietly() as connection:
            job = self._own(connection, job_id)
            _say(connection, job_id, said)
            _set(connection, job_id, _found(job, found) | ({"takes": 0} if got_on else {}))
            return locked(connection, job_id)

    def move(
        self,
        job_id: str,
        status: JobState,
        *said: Said,
        needs: Need | None = None,
        checkpoints: Checkpoints | None = None,
        **found: Any,
    ) -> JobRecord:
        """Take a job on to its next state, and to the work that it ``needs`` then.

        Once it has ended, or needs another sort of work, it is nobody's.

        Raises:
            LeaseLost: the job is not this worker's.
            NotAllowed: its owner has made something else of it.
        """
        with self._database.write_quietly() as connection:
            job = self._own(connection, job_id)
            if status is not job.status:
                check(job.status, status, Actor.WORKER)
            row: dict[str, Any] = {"status": status, "takes": 0, **_found(job, found)}
            if status is JobState.RUNNING and job.began is None:
                row["began"] = time.time()
            if needs is not None:
                row["needs"] = needs
            if status not in WORKED_ON or needs is not None:
                row |= {"worker": None, "leased_until": None}
            if checkpoints is not None:
                put_checkpoints(connection, job_id, checkpoints)
            _say(connection, job_id, said)
            _set(connection, job_id, row)
            return locked(connection, job_id)

    def _own(self, connection: Connection, job_id: str) -> JobRecord:
        job = locked(connection, job_id)
        if job.worker != self.worker or job.status is JobState.CANCELLED:
            raise LeaseLost(f"{job_id} is not this worker's any more")
        return job


def _free(needs: Collection[Need], base: str, now: float, but: Collection[str]) -> Any:
    open_ = jobs.c.status.in_(WORKED_ON) & jobs.c.needs.in_(needs) & (jobs.c.base == base)
    open_ = open_ & jobs.c.id.not_in(but) if but else open_
    return open_ & or_(jobs.c.worker.is_(None), jobs.c.leased_until < now)


def _next(
    connection: Connection,
    needs: Collection[Need],
    base: str,
    per_tenant: int | None,
    but: Collection[str] = (),
) -> JobRecord | None:
    now = time.time()
    free = connection.execute(
        select(jobs).where(_free(needs, base, now, but)).order_by(jobs.c.number).limit(_CANDIDATES)
    ).all()
    if not free:
        return None
    in_training = (jobs.c.leased_until >= now) & (jobs.c.needs == Need.TRAINING)
    counted = select(jobs.c.tenant, func.count().label("busy")).where(in_training).group_by(jobs.c.tenant)
    busy: dict[str | None, int] = {row.tenant: row.busy for row in connection.execute(counted)}
    latest = select(jobs.c.tenant, func.max(jobs.c.began).label("latest")).group_by(jobs.c.tenant)
    began: dict[str | None, float | None] = {row.tenant: row.latest for row in connection.execute(latest)}
    allowed = [
        row
        for row in free
        if per_tenant is None or row.needs != Need.TRAINING or busy.get(row.tenant, 0) < per_tenant
    ]
    found = min(
        allowed,
        key=lambda row: (row.began is None, busy.get(row.tenant, 0), began[row.tenant] or 0.0, row.number),
        default=None,
    )
    return None if found is None else job_of(found)


def _end_dead(connection: Connection, job: JobRecord) -> None:
    check(job.status, JobState.FAILED, Actor.WORKER)
    message = f"{job.takes} workers that took the job ended before it got on; the server's log may say why"
    put_event(connection, job.id, message, level="error")
    error = {"code": DIED, "message": message, "param": None}
    found = _found(job, {"error": error, "finished_at": time.time()})
    _set(connection, job.id, {"status": JobState.FAILED, "worker": None, "leased_until": None, **found})


def _say(connection: Connection, job_id: str, said: Collection[Said]) -> None:
    for each in said:
        put_event(
            connection,
            job_id,
            each.message,
            level=each.level,
            kind="metrics" if each.metrics else "sample" if each.sample else "message",
            data=each.metrics or each.sample or each.data,
        )


def _found(job: JobRecord, found: Mapping[str, Any]) -> dict[str, Any]:
    return {"record": packed(job.asked, {**job.found, **found})} if found else {}


def _set(connection: Connection, job_id: str, values: Mapping[str, Any]) -> None:
    if values:
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(dict(values)))
