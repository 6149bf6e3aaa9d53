"""A worker: takes jobs whose files are to be checked, one at a time, and jobs to be trained."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from manylora.adapters.errors import AdapterError, StoreError
from manylora.adapters.file_locks import try_lock
from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.tuning.leases import MAX_TAKES, LeaseLost, Said
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.registry.tuning.states import JobState, Need, NotAllowed
from manylora.server.jobs.folder import JobFolder, revision_directory
from manylora.server.jobs.inspection import Fault, Inspection, inspect, public
from manylora.server.jobs.training_config import Place
from manylora.server.jobs.worker.device_memory import DeviceMemory, Figures, cuda_figures, no_figures
from manylora.server.jobs.worker.heartbeat import Heartbeat
from manylora.server.jobs.worker.trainings import Trainings

logger = logging.getLogger(__name__)

FAILED: Final = "training_failed"
_LOOK_EVERY = 0.5  # seconds
_BUSY_WAIT = 2.0  # seconds, where a job's directory is still another's


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker is told."""

    name: str  # by which the registry knows it
    base: str  # fingerprint of the base model
    place: Place
    per_tenant: int | None = None  # jobs of one tenant in training at a time
    idle_seconds: float | None = None  # without work after which it ends; None: never
    at_once: int = 1  # jobs that it trains at the same time, where they can share the base


class Worker:
    """Works on jobs until it is told to end, or has had nothing to do for long."""

    def __init__(
        self,
        registry: Registry,
        options: WorkerOptions,
        figures: Callable[[], Figures | None] = cuda_figures,
    ) -> None:
        """``figures`` are those of the memory that is asked for, where it is."""
        self._options = options
        self.leases = registry.tuning_leases(options.name)
        self._registry = registry
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._at_work = 0  # threads with a job
        self._busy = time.monotonic()  # when one last had
        self._trainings = Trainings(options.at_once, self._shares)
        self._memory = DeviceMemory(no_figures if options.place.device == "cpu" else figures)

    def end(self) -> None:
        """Stop after the current step; what is unfinished is others' to take up."""
        self._ending.set()

    @property
    def is_ending(self) -> bool:
        """Whether it was told to end."""
        return self._ending.is_set()

    def run(self) -> None:
        """Work; each job is trained in a thread of its own."""
        checking = threading.Thread(target=self._check_files, daemon=True)
        checking.start()
        self._train_jobs()
        self._ending.set()
        checking.join()

    def _check_files(self) -> None:
        def look() -> float:
            job = self._take(Need.VALIDATION)
            if job is None:
                return _LOOK_EVERY
            self.work_on(job, self.validate)
            return 0.0

        self._repeat(look)

    def _train_jobs(self) -> None:
        def look() -> float:
            job = self._take(Need.TRAINING, self._trainings.fits) if self._trainings.has_room else None
            if job is None:
                return _LOOK_EVERY
            with self._working():  # the first one brings the trainer's libraries, which takes a while
                self._trainings.begin(job, lambda: self.work_on(job, self._train))
            return 0.0

        self._repeat(look)
        self._trainings.join()

    def _repeat(self, look: Callable[[], float]) -> None:
        """``look`` for work until the end, so many seconds after the last time as it says."""
        while not self.is_ending and not self._is_idle():
            try:
                pause = look()
            except StoreError as error:
                logger.warning("jobs wait: %s", error)
                pause = _BUSY_WAIT
            self._ending.wait(pause)

    def _take(self, need: Need, fits: Callable[[JobRecord], bool] = lambda _: True) -> JobRecord | None:
        """The next job if it ``fits``; the database is locked only where there is one."""
        base, most = self._options.base, self._options.per_tenant
        if not self.leases.waiting([need], base):
            return None
        job = self.leases.next([need], base, per_tenant=most)
        if job is None or not (fits(job) or job.takes >= MAX_TAKES):
            return None
        return self.leases.take([need], base, per_tenant=most, fits=fits)

    def _shares(self, job: JobRecord) -> bool:
        """Whether a job can train beside others on one copy of the base."""
        from manylora.server.jobs.worker.training import shares  # noqa: PLC0415  (brings torch and TRL)

        try:
            return shares(job, self._folder(job), self._options.place, self._init_adapter(job))
        except (AdapterError, ValueError):  # it is to fail by itself
            return False

    def _is_idle(self) -> bool:
        limit = self._options.idle_seconds
        return limit is not None and not self._at_work and time.monotonic() - self._busy > limit

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Within the block the worker is not idle."""
        with self._lock:
            self._at_work += 1
        try:
            yield
        finally:
            with self._lock:
                self._at_work -= 1
                self._busy = time.monotonic()

    def work_on(self, job: JobRecord, work: Callable[[JobRecord], None]) -> None:
        """Do ``work`` on a job that was taken, in its directory, and let go of it."""
        with self._working():
            with self._directory(job) as free:
                if free:
                    with suppress(LeaseLost, NotAllowed):  # its owner has ended or paused it
                        work(job)
            self.leases.release(job.id)
        if not free:
            self._ending.wait(_BUSY_WAIT)

    @contextmanager
    def _directory(self, job: JobRecord) -> Iterator[bool]:
        """Hold the job's directory, in which nobody else writes; False if somebody else has it."""
        folder = self._folder(job)
        folder.root.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder.lock, create=True)
        if lock is None:
            yield False
            return
        with lock:
            yield True

    def _folder(self, job: JobRecord) -> JobFolder:
        return JobFolder.of(self._options.place.data_dir, job.id)

    def _init_adapter(self, job: JobRecord) -> Path | None:
        """The directory of the adapter that a job goes on from.

        Raises:
            SourceMissing: it was deleted.
        """
        return revision_directory(self._options.place.data_dir, job.asked["init"])

    def validate(self, job: JobRecord) -> None:
        """Check a job's files: it waits for training afterwards, or has failed."""
        self.leases.tell(job.id, Said(f"Validating training file: {job.training_file}"))
        with Heartbeat(self.leases, job.id, lambda _: None, lambda: False):
            found = self._inspected(job)
        warned = [_said(each, "warn") for each in found.warnings]
        if found.faults:
            self._fail(job, found.faults, warned)
            return
        self.leases.move(
            job.id,
            JobState.QUEUED,
            *warned,
            Said("Files validated, moving job to queued state"),
            needs=Need.TRAINING,
            hyperparameters=dict(found.hyperparameters or {}),
            trained_tokens_in_all=found.trained_tokens,
            rows=found.rows,
            longest_row=found.longest,
            validation=found.validation_rows > 0,
            data_digest=found.digest,
        )

    def _inspected(self, job: JobRecord) -> Inspection:
        try:
            return inspect(job.asked, self._folder(job), self._options.place, self._init_adapter(job))
        except AdapterError as error:
            return Inspection(faults=(Fault(self._public(job, error), "invalid_request", "model"),))
        except Exception:
            logger.exception("%s: checking its files failed", job.id)
            return Inspection(faults=(Fault("Checking the file met an unexpected fault", "server_error"),))

    def _train(self, job: JobRecord) -> None:
        from manylora.server.jobs.worker.training import train_job  # noqa: PLC0415  (brings torch and TRL)

        folder = self._folder(job)
        try:
            steps = train_job(
                job,
                folder,
                self._options.place,
                leases=self.leases,
                init_adapter=self._init_adapter(job),
                ending=self._ending,
                shared=self._trainings.shared,
                memory=self._memory,
            )
        except (LeaseLost, NotAllowed):
            raise
        except AdapterError as error:
            self._fail(job, [Fault(self._public(job, error), FAILED, param="")], [])
        except Exception as error:
            logger.exception("%s: training failed", job.id)
            if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
                message = "There is not enough memory: take a smaller batch_size, or lora.quantization"
                self._fail(job, [Fault(message, "out_of_memory", param="")], [])
                return
            self._fail(job, [Fault("Training met an unexpected fault", "server_error", param="")], [])
        else:
            if steps is not None:
                self.leases.move(
                    job.id,
                    JobState.RUNNING,
                    needs=Need.PUBLICATION,
                    steps=steps,
                )

    def _fail(self, job: JobRecord, faults: Any, before: list[Said]) -> None:
        first = faults[0]
        self.leases.move(
            job.id,
            JobState.FAILED,
            *before,
            *(_said(each, "error") for each in faults),
            error={"code": first.code, "message": _text(first), "param": first.param or None},
            finished_at=time.time(),
            estimated_finish=None,
        )
        shutil.rmtree(self._folder(job).root, ignore_errors=True)

    def _public(self, job: JobRecord, error: Exception) -> str:
        return public(str(error), self._folder(job), self._options.place)


def _said(fault: Fault, level: Any) -> Said:
    data = {"code": fault.code, "param": fault.param or None, **({"line": fault.line} if fault.line else {})}
    return Said(_text(fault), level, data=data)


def _text(fault: Fault) -> str:
    return f"line {fault.line}: {fault.message}" if fault.line else fault.message
