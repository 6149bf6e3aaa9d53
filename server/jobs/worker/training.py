"""One job's run by the trainer: begun, or gone on with from where another left it."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Event

from manylora.adapters.registry.tuning.leases import LeaseLost, TuningLeases
from manylora.adapters.registry.tuning.records import JobRecord
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import CheckpointError, Interrupted
from manylora.adapters.training.run.train import TrainingResult, Watch, train
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.trainers.callbacks import StopCallback
from manylora.server.jobs.folder import JobFolder
from manylora.server.jobs.training_config import Place, train_config
from manylora.server.jobs.worker.heartbeat import LOST, PAUSED, Heartbeat
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
) -> int | None:
    """Train what ``job`` asks for; how many steps it took, or None: it was stopped, and can go on.

    ``ending`` is set when the worker is to end; a signal that comes meanwhile sets it.

    Raises:
        LeaseLost: the job is another's, or was cancelled.
        AdapterError: it can't be trained.
    """
    hyperparameters = job.found["hyperparameters"]
    config = train_config(
        job.asked,
        hyperparameters,
        folder,
        place,
        validation=job.found["validation"],
        init_adapter=init_adapter,
    )
    stop = StopCallback()
    with Heartbeat(leases, job.id, stop.ask, ending.is_set) as heartbeat:
        progress = Progress(heartbeat, job.found["trained_tokens_in_all"])
        watch = Watch(
            stop=stop,
            callbacks=lambda session: [progress, ExportCallback(folder, session, heartbeat)],
            told=progress.line,
            lineage=lineage_of(job),
        )
        resume = Folder(folder.run).last_checkpoint() is not None
        try:
            result = _train(config, watch, folder, resume=resume)
        except Interrupted:
            if stop.reason == LOST:
                raise LeaseLost(f"{job.id} is not this worker's any more") from None
            heartbeat.flush()
            if stop.reason != PAUSED:  # a signal that the trainer took, or the worker ends anyway
                ending.set()
            return None
        hide_places(folder, place)
        tell_outcome(job, heartbeat, result)
        heartbeat.flush()
        return result.steps


def _train(config: TrainConfig, watch: Watch, folder: JobFolder, *, resume: bool) -> TrainingResult:
    if resume:
        try:
            return _done(train(config, resume=True, watch=watch))
        except CheckpointError as error:  # as after an update of the libraries: rather late than never
            logger.warning("begun anew: %s", error)
    folder.clear_work()
    return _done(train(config, overwrite=True, watch=watch))


def _done(result: TrainingResult | None) -> TrainingResult:
    assert result is not None, "there is one process"
    return result
