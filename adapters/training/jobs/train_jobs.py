"""``manylora train --jobs``: several adapters trained in one process on one copy of the base.

Each is a run of its own, with its own directory, checkpoints and gate, in a thread of
:class:`~manylora.adapters.training.jobs.shared_training.SharedTraining`.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Sequence

import torch
from rich.console import Console

from manylora.adapters.errors import AdapterError
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import Interrupted, TrainingConfigError, TrainingError
from manylora.adapters.training.jobs.shared_base import not_shared
from manylora.adapters.training.jobs.shared_training import SharedTraining
from manylora.adapters.training.run.train import TrainingResult, Watch, train
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.trainers.callbacks import StopCallback, stop_on_signals

logger = logging.getLogger(__name__)

_SAME = ("base_model", "dtype", "device", "quantization")


def train_jobs(
    configs: Sequence[TrainConfig],
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> list[TrainingResult]:
    """Train one adapter for each of ``configs``, all at once.

    One that fails leaves the others alone; SIGINT and SIGTERM stop all of them, with a checkpoint each.

    Args:
        configs: of runs on one base, each with an output directory of its own.
        resume: go on from the last checkpoint of each; one that has none begins anew.
        overwrite: replace the runs in their directories.
        console: where each run's lines are shown behind its adapter's name; None works silently.

    Raises:
        TrainingConfigError: they have no common base, or one needs what only a run of its own can do.
        Interrupted: they were stopped.
        AdapterError: as for :func:`~manylora.adapters.training.run.train.train`; the others have ended.
    """
    check_jobs(configs)
    shown = Console(quiet=True) if console is None else console
    training, stop = SharedTraining(), StopCallback()
    watch = Watch(stop=stop, loader=training.base.loader, begun=training.begun)

    folders = [Folder(config.output_dir, config.product) for config in configs]
    begun = [folder.last_checkpoint() is not None for folder in folders]
    ended: list[TrainingResult | AdapterError | None] = [None] * len(configs)

    def run(index: int) -> None:
        config = configs[index]
        own = Console(file=_Lines(shown, config.adapter_name), quiet=shown.quiet, width=shown.width)
        going_on = resume and (begun[index] or not any(begun))
        anew = resume and not going_on and not folders[index].finished.exists()  # there is nothing to lose
        try:
            with training.taking_part():
                ended[index] = train(
                    config, resume=going_on, overwrite=overwrite or anew, console=own, watch=watch
                )
        except Exception as error:  # whatever ends one run leaves the others alone
            fault = _fault(error)
            own.print(f"error: {fault}", markup=False, highlight=False, soft_wrap=True)
            ended[index] = fault

    # They end with the process: whoever stops it a second time does not wait for them.
    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(configs))]
    with stop_on_signals(stop):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    _raise_faults(configs, [each if isinstance(each, AdapterError) else None for each in ended])
    return [each for each in ended if isinstance(each, TrainingResult)]


def _fault(error: Exception) -> AdapterError:
    """What is told of an error; it holds no memory of the run."""
    if isinstance(error, AdapterError):
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    logger.error("a run ended by an unexpected fault", exc_info=error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return TrainingError(
            "there is not enough memory: take a smaller batch_size or max_length, or fewer jobs"
        )
    return TrainingError(f"{type(error).__name__}: {error}")


def _raise_faults(configs: Sequence[TrainConfig], faults: Sequence[AdapterError | None]) -> None:
    given = [(config, fault) for config, fault in zip(configs, faults, strict=True) if fault is not None]
    if len(given) == 1:
        ((config, fault),) = given
        if len(configs) > 1:
            fault.args = (f"{config.output_dir}: {fault}",)  # of the same kind, and named
        raise fault
    if given:
        kind = Interrupted if all(isinstance(fault, Interrupted) for _, fault in given) else TrainingError
        raise kind("\n".join(f"{config.output_dir}: {fault}" for config, fault in given))


def check_jobs(configs: Sequence[TrainConfig]) -> None:
    """Raise if ``configs`` can't be trained together.

    Raises:
        TrainingConfigError: with every reason.
    """
    faults = []
    for option in _SAME:
        values = {getattr(config, option) for config in configs}
        if len(values) > 1:
            faults.append(f"{option}: jobs share one base, so it must be the same in all of them")
    if len({config.output_dir for config in configs}) < len(configs):
        faults.append("output_dir: every job needs one of its own")
    for index, config in enumerate(configs, 1):
        apart = [*not_shared(config), *(["report_to"] if config.report_to else [])]
        faults += [
            f"{option}: job {index} ({config.output_dir}) needs a run of its own for it" for option in apart
        ]
    if faults:
        raise TrainingConfigError("\n".join(faults))


class _Lines(io.StringIO):
    """What one run writes, line by line behind the name of its adapter."""

    def __init__(self, console: Console, name: str) -> None:
        super().__init__()
        self._console, self._name, self._begun = console, name, ""

    def write(self, text: str, /) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._console.print(f"{self._name}: {line}", markup=False, highlight=False, soft_wrap=True)
        return len(text)
