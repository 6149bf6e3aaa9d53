"""The jobs that a worker trains at the same time, each in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from manylora.adapters.errors import StoreError
from manylora.adapters.registry.tuning.records import JobRecord

if TYPE_CHECKING:
    from manylora.adapters.training.jobs.shared_training import SharedTraining

logger = logging.getLogger(__name__)


class Trainings:
    """Which jobs are in training here, and which may join them. Of one thread."""

    def __init__(self, at_once: int, shares: Callable[[JobRecord], bool]) -> None:
        """
        Args:
            at_once: jobs at most.
            shares: whether a job can train beside others on one copy of the base.
        """
        self._at_once, self._can_share = at_once, shares
        self._threads: dict[str, threading.Thread] = {}  # by job
        self._apart: set[str] = set()  # jobs among them that nobody may join
        self._shared: SharedTraining | None = None

    @property
    def shared(self) -> SharedTraining:
        """What the jobs have in common."""
        assert self._shared is not None, "a job has begun"
        return self._shared

    @property
    def has_room(self) -> bool:
        self._forget_ended()
        return len(self._threads) < self._at_once

    def fits(self, job: JobRecord) -> bool:
        """Whether a job can be trained now, beside those that are.

        One whose last worker died before it got on may be what killed it, and is trained alone.
        """
        self._forget_ended()
        if not self._threads:
            return True
        joins = job.id not in self._threads and not self._apart and job.takes == 0
        return joins and self._can_share(job)

    def begin(self, job: JobRecord, work: Callable[[], None]) -> None:
        """Do ``work`` on a job, which was taken, in a thread."""
        from manylora.adapters.training.jobs.shared_training import SharedTraining  # noqa: PLC0415  (slow)

        if self._shared is None:
            self._shared = SharedTraining()
        if job.takes > 1 or self._at_once == 1 or not self._can_share(job):
            self._apart.add(job.id)

        def run() -> None:
            try:
                work()
            except StoreError as error:
                logger.warning("%s waits: %s", job.id, error)
            except Exception:  # another takes it up when its lease is over
                logger.exception("%s: training met an unexpected fault", job.id)

        thread = self._threads[job.id] = threading.Thread(target=run, name=f"training {job.id}")
        thread.start()

    def join(self) -> None:
        """Wait until all of them have ended or were left."""
        for thread in self._threads.values():
            thread.join()

    def _forget_ended(self) -> None:
        for job_id, thread in list(self._threads.items()):
            if not thread.is_alive():
                del self._threads[job_id]
                self._apart.discard(job_id)
