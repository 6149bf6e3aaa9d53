"""Publishes what workers have trained: the model, its checkpoints and its result files."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

from manylora.adapters.disk import is_full
from manylora.adapters.errors import AdapterError, AdapterNotFound, OverQuota, StoreError, TenantNotFound
from manylora.adapters.grading.grade import Ask
from manylora.adapters.registry.fine_tuned import checkpoint_name
from manylora.adapters.registry.tuning.leases import Checkpoints, LeaseLost, Said, TuningLeases
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.registry.tuning.states import JobState, Need, NotAllowed
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.session.metrics_log import read_metrics
from manylora.server.adapter_manager import AdapterManager
from manylora.server.files.stored_files import StoredFiles
from manylora.server.jobs.folder import JobFolder
from manylora.server.jobs.grades_shown import events_of, with_grades, write_grades
from manylora.server.jobs.grading import grades_of
from manylora.server.jobs.results import at, by_step, csv_of
from manylora.server.names.admin.publishing import copy

AskFor = Callable[[str | None], Ask]
"""What asks routes of this server in the name of a tenant, by its id, or of who has none."""

logger = logging.getLogger(__name__)

PURPOSE = "fine-tune-results"
_REFUSED = "publication_failed"
PAUSES: Final = (2.0, 4.0, 8.0, 16.0, 32.0)  # seconds after unexpected faults; after the next one it fails
_RESULTS = ("step_metrics.csv", "report.html", "README.md")  # files of a job


@dataclass(slots=True)
class _Fault:
    """That publishing a job met an unexpected fault."""

    times: int = 0
    again: float = 0.0  # by the monotonic clock, before which it is not tried


@dataclass(frozen=True, slots=True)
class _Model:
    """One adapter to publish."""

    registered: str  # the registry's name
    directory: Path


class Publications:
    """Takes trained jobs one after the other. Event loop."""

    def __init__(
        self,
        leases: TuningLeases,
        adapters: AdapterManager,
        files: StoredFiles,
        data_dir: Path,
        room: Callable[[str], int | None],
        *,
        base_name: str,
    ) -> None:
        """
        Args:
            leases: of this server.
            adapters: where models are published.
            files: where result files are kept.
            data_dir: that the workers share.
            room: how many bytes the adapters of a tenant (its id) may have in all; None: any number.
            base_name: what the base is called here.
        """
        self._leases, self._adapters, self._files = leases, adapters, files
        self._data_dir, self._room, self._base_name = data_dir, room, base_name
        self._faults: dict[str, _Fault] = {}  # unexpected ones, by job

    async def work(self, ask_for: AskFor) -> None:
        """Publish what there is to publish now.

        A job that meets an unexpected fault is tried again later and later, and then fails; the others go on.

        Raises:
            StoreError, OSError: there is no room on the disk, or the registry is not there: all wait.
        """
        needs, base = [Need.PUBLICATION], self._adapters.base.fingerprint
        while True:
            later = [job_id for job_id, fault in self._faults.items() if fault.again > time.monotonic()]
            if not await asyncio.to_thread(self._leases.waiting, needs, base, but=later):
                return
            job = await asyncio.to_thread(self._leases.take, needs, base, but=later)
            if job is None:
                return
            try:
                await self._publish(job, ask_for(job.tenant))
            except (LeaseLost, NotAllowed):
                await self._take_back(job)
            except Exception as error:
                if isinstance(error, StoreError) or is_full(error):
                    raise
                logger.exception("%s: publishing met an unexpected fault", job.id)
                await self._met_fault(job)
            else:
                self._faults.pop(job.id, None)
            finally:
                await asyncio.to_thread(self._leases.release, job.id)

    async def _met_fault(self, job: JobRecord) -> None:
        """Have a job wait before it is tried again; fail it if it was tried often enough."""
        fault = self._faults.setdefault(job.id, _Fault())
        if fault.times < len(PAUSES):
            fault.again = time.monotonic() + PAUSES[fault.times]
            fault.times += 1
            return
        del self._faults[job.id]
        message = f"The model can't be published: {len(PAUSES) + 1} attempts met an unexpected fault"
        with suppress(LeaseLost, NotAllowed):
            await asyncio.to_thread(self._end, job, message)
            await self._delete(job, JobFolder.of(self._data_dir, job.id))

    async def _publish(self, job: JobRecord, ask: Ask) -> None:
        folder = JobFolder.of(self._data_dir, job.id)
        try:
            models = await asyncio.to_thread(self._models, job, folder)
            steps = await asyncio.to_thread(lambda: by_step(read_metrics(Folder(folder.run).metrics)))
            grades = await grades_of(job, folder, self._leases, ask, self._base_name)
            if grades is not None:
                await asyncio.to_thread(write_grades, folder, grades, steps)
            for model in models:
                await asyncio.to_thread(self._leases.renew, job.id)
                await self._bring_in(job, model)
        except StoreError:
            raise
        except (AdapterError, OSError) as error:
            await self._fail(job, folder, error)
            return
        results = await asyncio.to_thread(self.keep_results, job, folder, steps)
        name = job.asked["name"]
        checkpoints: Checkpoints = [
            (step, checkpoint_name(name, step), with_grades(at(steps, step), grades, step))
            for step in folder.exported()
        ]
        await asyncio.to_thread(
            lambda: self._leases.move(
                job.id,
                JobState.SUCCEEDED,
                *([] if grades is None else events_of(grades, steps)),
                Said(f"New fine-tuned model created: {name}"),
                Said("The job has successfully completed"),
                checkpoints=checkpoints,
                fine_tuned_model=name,
                grades=grades,
                result_files=results,
                finished_at=time.time(),
                estimated_finish=None,
            )
        )
        await asyncio.to_thread(folder.remove)

    def _models(self, job: JobRecord, folder: JobFolder) -> list[_Model]:
        """The job's checkpoints and its model, which comes last.

        Raises:
            TenantNotFound: whose it was is not there any more.
            OverQuota: the tenant has no room for them.
            FileNotFoundError: there is no adapter.
        """
        if not self._adapters.registry.tuning.has_owner(job):
            raise TenantNotFound("the tenant whose job it was is not there any more")
        registered = job.asked["registered"]
        found = [_Model(checkpoint_name(registered, step), folder.export(step)) for step in folder.exported()]
        found.append(_Model(registered, Folder(folder.run).finished))
        if not found[-1].directory.is_dir():
            raise FileNotFoundError("what was trained is not in the job's directory")
        limit = None if job.tenant is None else self._room(job.tenant)
        if limit is not None:
            used = self._adapters.registry.revisions.bytes_of(job.asked["namespace"])
            wanted = sum(_bytes(model.directory) for model in found)
            if used + wanted > limit:
                raise OverQuota(
                    f"your adapters take {used} bytes of {limit}, and these have {wanted}: delete some"
                )
        return found

    async def _bring_in(self, job: JobRecord, model: _Model) -> None:
        publication = await self._adapters.admin.begin_publish(
            model.registered, lambda into: copy(model.directory, into), source=f"job:{job.id}"
        )
        await publication.done()

    def keep_results(self, job: JobRecord, folder: JobFolder, steps: list[dict[str, Any]]) -> list[str]:
        """The ids of the job's result files: the table of measures, the report, and the model's card."""
        run, found = Folder(folder.run), []
        with TemporaryDirectory(dir=folder.root) as scratch:
            paths = [Path(scratch) / name for name in _RESULTS]
            paths[0].write_bytes(csv_of(steps))
            for written, path in zip((run.root, run.finished), paths[1:], strict=True):
                if (written / path.name).is_file():
                    shutil.copyfile(written / path.name, path)
            for number, path in enumerate(paths):
                if path.exists():
                    file_id = _result_id(job, number)
                    found.append(
                        self._files.add(path, path.name, PURPOSE, file_id=file_id, tenant=job.tenant).id
                    )
        return found

    async def _fail(self, job: JobRecord, folder: JobFolder, error: Exception) -> None:
        public = getattr(error, "public", None) or str(error)
        message = f"The model can't be published: {public}".replace(str(folder.root), "the job")
        if not isinstance(error, AdapterError):
            logger.error("%s: %s", job.id, error)
            message = "The model can't be published: its files are not there"
        await self._delete(job, folder)
        await asyncio.to_thread(self._end, job, message)
        await asyncio.to_thread(folder.remove)

    def _end(self, job: JobRecord, message: str) -> None:
        self._leases.move(
            job.id,
            JobState.FAILED,
            Said(message, "error"),
            error={"code": _REFUSED, "message": message, "param": None},
            finished_at=time.time(),
            estimated_finish=None,
        )

    async def _take_back(self, job: JobRecord) -> None:
        """Delete what was published of a job that was cancelled meanwhile."""
        now = await asyncio.to_thread(self._adapters.registry.tuning.get, job.id)
        if now is not None and now.status is JobState.CANCELLED:
            await self._delete(job, JobFolder.of(self._data_dir, job.id))
            for number in range(len(_RESULTS)):
                await asyncio.to_thread(self._files.remove, _result_id(job, number))

    async def _delete(self, job: JobRecord, folder: JobFolder) -> None:
        registered = job.asked["registered"]
        steps = await asyncio.to_thread(folder.exported)
        for name in [registered, *(checkpoint_name(registered, step) for step in steps)]:
            try:
                await self._adapters.deletions.delete(name, 0.0)
            except AdapterNotFound:
                continue


def new_job_id() -> str:
    """An id that no other job has."""
    return f"ftjob-{uuid4().hex}"


def _result_id(job: JobRecord, number: int) -> str:
    """The same whenever publishing is begun anew: what a killed server left is replaced."""
    return f"file-{job.id.removeprefix('ftjob-')}-{number}"


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
