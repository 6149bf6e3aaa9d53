"""Jobs in a registry, and workers of it in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.registry.tuning.states import JobState, Need
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.session.metrics_log import read_metrics
from manylora.server.jobs.folder import TRAINING, VALIDATION, JobFolder
from manylora.server.jobs.publication import new_job_id
from manylora.server.jobs.training_config import Place
from manylora.server.jobs.worker.worker import Worker, WorkerOptions
from tests.support.training_data import write
from tests.support.tuning import ROWS

STEPS = 12  # of a job here: 2 epochs of 24 rows, 4 at a time


@dataclass
class Setup:
    """A registry with jobs, and workers of it."""

    registry: Registry
    place: Place

    def add(self, rows: Any = ROWS, *, validation: Any = None, **asked: Any) -> str:
        job_id = new_job_id()
        folder = self.folder(job_id)
        folder.root.mkdir(parents=True)
        write(folder.data(TRAINING), rows)
        if validation is not None:
            write(folder.data(VALIDATION), validation)
        numbers = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 50.0}
        whole = {"model": "tiny", "init": None, "method": "supervised", "hyperparameters": numbers,
                 "lora": {"r": 4}, "seed": 3, "metadata": None, "name": "ft:tiny:local::1"}  # fmt: skip
        record = JobRecord(
            id=job_id,
            created=time.time(),
            status=JobState.VALIDATING,
            needs=Need.VALIDATION,
            base="b",
            training_file="file-1",
            asked={**whole, **asked},
        )
        self.registry.tuning.add(record)
        return job_id

    def folder(self, job_id: str) -> JobFolder:
        return JobFolder.of(self.place.data_dir, job_id)

    def worker(self, name: str = "one", at_once: int = 1) -> Worker:
        return Worker(self.registry, WorkerOptions(name, "b", self.place, None, 1.0, at_once))

    def job(self, job_id: str) -> JobRecord:
        found = self.registry.tuning.get(job_id)
        assert found is not None
        return found

    def losses(self, job_id: str) -> list[tuple[int, float]]:
        lines = read_metrics(Folder(self.folder(job_id).run).metrics)
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    def messages(self, job_id: str) -> list[str]:
        return [event.message for event in self.registry.tuning_events.since(job_id, 0, 999)]

    def is_trained(self, job_id: str) -> bool:
        job = self.job(job_id)
        return (job.status, job.needs, job.worker) == (JobState.RUNNING, Need.PUBLICATION, None)
