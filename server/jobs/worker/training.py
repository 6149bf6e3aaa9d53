"""One job's run by the trainer: begun, or gone on with from where another left it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from threading import Event

from manylora.adapters.registry.tuning.leases import LeaseLost, Said, TuningLeases
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import CheckpointError, Interrupted
from manylora.adapters.training.jobs.shared_base import can_share
from manylora.adapters.training.jobs.shared_training import SharedTraining
from manylora.adapters.training.run.train import TrainingResult, Watch, train
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.trainers.callbacks import StopCallback
from manylora.server.jobs.folder import JobFolder
from manylora.server.jobs.training_config import Place, train_config
from manylora.server.jobs.worker.heartbeat import LOST, Heartbeat
from manylora.server.jobs.worker.progress import ExportCallback, Progress

logger = logging.getLogger(__name__)


def train_job(
    job: JobRecord,
    folder: JobFolder,
    place: Place,
    *,
    leases: TuningLeases,
    init_adapter: Path | None,
    ending: Event,
    shared: SharedTraining,
) -> int | None:
    """Train what ``job`` asks for; how many steps it took, or None: it was stopped, and can go on.

    ``ending`` is set when the worker is to end; ``shared`` is what it has in common with the others that the
    worker trains.

    Raises:
        LeaseLost: the job is another's, or was cancelled.
        AdapterError: it can't be trained.
    """
    config = _config(job, folder, place, init_adapter)
    stop = StopCallback()
    with Heartbeat(leases, job.id, stop.ask, ending.is_set) as heartbeat:
        progress = Progress(heartbeat, job.found["trained_tokens_in_all"])
        watch = Watch(
            stop=stop,
            callbacks=lambda session: [progress, ExportCallback(folder, session, heartbeat)],
            told=progress.line,
            lineage={
                "method": "fine-tuning",
                "members": [],
                "job": job.id,
                "data": job.found["data_digest"],
                "config": {**job.found["hyperparameters"], "type": job.asked["method"], **job.asked["lora"]},
                "seed": job.asked["seed"],
            },
            begun=shared.begun,
        )
        if can_share(config):
            watch = replace(watch, loader=shared.base.loader)
        try:
            with shared.taking_part():
                result = _train(config, watch, folder)
        except Interrupted:
            if stop.reason == LOST:
                raise LeaseLost(f"{job.id} is not this worker's any more") from None
            heartbeat.flush()
            return None
        for warning in result.warnings:
            heartbeat.say(Said(warning, "warn"))
        if result.kept_step != result.steps:
            message = (
                f"The step with the lowest validation loss is kept: {result.kept_step} of {result.steps}"
            )
            heartbeat.say(Said(message), kept_step=result.kept_step)
        heartbeat.flush()
        return result.steps


def shares(job: JobRecord, folder: JobFolder, place: Place, init_adapter: Path | None) -> bool:
    """Whether a job can train beside others on one copy of the base.

    Raises:
        ValueError: what it asks for can't be trained at all.
    """
    return can_share(_config(job, folder, place, init_adapter))


def _config(job: JobRecord, folder: JobFolder, place: Place, init_adapter: Path | None) -> TrainConfig:
    numbers, validation = job.found["hyperparameters"], job.found["validation"]
    return train_config(job.asked, numbers, folder, place, validation=validation, init_adapter=init_adapter)


def _train(config: TrainConfig, watch: Watch, folder: JobFolder) -> TrainingResult:
    if Folder(folder.run).last_checkpoint() is not None:
        try:
            return _done(train(config, resume=True, watch=watch))
        except CheckpointError as error:  # as after an update of the libraries: rather late than never
            logger.warning("begun anew: %s", error)
    folder.clear_work()
    return _done(train(config, overwrite=True, watch=watch))


def _done(result: TrainingResult | None) -> TrainingResult:
    assert result is not None, "there is one process"
    return result
