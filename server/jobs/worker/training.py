"""One job's run by the trainer: begun, or gone on with from where another left it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

from manylora.adapters.registry.tuning.leases import LeaseLost, Said, TuningLeases
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.registry.tuning.states import JobState
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import CheckpointError, Interrupted
from manylora.adapters.training.jobs.shared_base import can_share
from manylora.adapters.training.jobs.shared_training import SharedTraining
from manylora.adapters.training.run.train import TrainingResult, Watch, train
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.trainers.callbacks import StopCallback
from manylora.server.jobs.folder import JobFolder
from manylora.server.jobs.memory import memory_of
from manylora.server.jobs.training_config import Place, train_config
from manylora.server.jobs.worker.device_memory import Claim, DeviceMemory
from manylora.server.jobs.worker.heartbeat import LOST, Heartbeat
from manylora.server.jobs.worker.outcome import hide_places, lineage_of, tell_outcome
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
    memory: DeviceMemory,
) -> int | None:
    """Train what ``job`` asks for; how many steps it took, or None: it was stopped, and can go on.

    ``ending`` is set when the worker is to end; ``shared`` is what it has in common with the others that the
    worker trains, and ``memory`` what they divide.

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
            lineage=lineage_of(job),
            begun=shared.begun,
        )
        if _shares(config):
            watch = replace(watch, loader=shared.base.loader)
        try:
            with _memory(job, config, leases, shared, memory, stop):
                if job.status is JobState.QUEUED:
                    leases.move(job.id, JobState.RUNNING, Said("Fine-tuning job started"))
                with shared.taking_part():
                    result = _train(config, watch, folder)
        except Interrupted:
            if stop.reason == LOST:
                raise LeaseLost(f"{job.id} is not this worker's any more") from None
            heartbeat.flush()
            return None
        hide_places(folder, place)
        tell_outcome(job, heartbeat, result)
        heartbeat.flush()
        return result.steps


@contextmanager
def _memory(  # noqa: PLR0917
    job: JobRecord,
    config: TrainConfig,
    leases: TuningLeases,
    shared: SharedTraining,
    memory: DeviceMemory,
    stop: StopCallback,
) -> Iterator[None]:
    """Have the memory that a job needs within the block, where that has to be asked for.

    Raises:
        Interrupted: ``stop`` was asked to stop it while it waited.
    """

    def waits(needed: int, there: int) -> None:
        message = f"Waiting for GPU memory: the job needs about {_gb(needed)}, and {_gb(there)} are free"
        leases.tell(job.id, Said(message))

    claim = Claim(0, 0, shares=True)
    if memory.is_asked_for:
        with shared.taking_part():  # while models are built, libraries change PyTorch for the whole process
            claim = _claim(job, config)
    with memory.claimed(job.id, claim, waits, lambda: stop.reason is not None) as has_it:
        if not has_it:
            raise Interrupted("stopped while it waited for memory")
        yield


def _claim(job: JobRecord, config: TrainConfig) -> Claim:
    try:
        needed = memory_of(config, job.found.get("longest_row", config.max_length))
    except Exception:  # of a model whose shape is like no other: it begins, and fails if there is too little
        logger.exception("%s: how much memory it needs can't be told", job.id)
        return Claim(0, 0, shares=True)
    return Claim(needed.peak - needed.weights, needed.weights, _shares(config))


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def shares(job: JobRecord, folder: JobFolder, place: Place, init_adapter: Path | None) -> bool:
    """Whether a job can train beside others on one copy of the base.

    Raises:
        ValueError: what it asks for can't be trained at all.
    """
    return _shares(_config(job, folder, place, init_adapter))


def _shares(config: TrainConfig) -> bool:
    """One copy of the base is counted in the memory that jobs divide: the one that is not quantized."""
    return can_share(config) and config.quantization == "none"


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
