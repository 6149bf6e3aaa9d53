"""Several adapters trained in one process on one copy of the base.

The next batch of every job goes through the base together, in one forward and one backward pass; each job has
its own data, optimizer, schedule and log, and ends when its own steps are done. Nothing of one job enters
another: their matrices are separate, and a row meets only those of its own job. Each adapter then passes the
same gate as one that was trained alone.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import get_peft_model
from rich.console import Console
from torch import Tensor

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.decoder.choice import fused_decoder
from manylora.adapters.training.errors import TrainingConfigError, TrainingError
from manylora.adapters.training.gate.publish_gate import gate_logits
from manylora.adapters.training.jobs.measures import Best, Window
from manylora.adapters.training.jobs.shared_steps import SharedSteps, shared_steps
from manylora.adapters.training.methods import LORA
from manylora.adapters.training.model.loading import BaseLoader
from manylora.adapters.training.model.pairs import Pair, lora_pairs
from manylora.adapters.training.run.export import round_as_saved, write_artifact, write_companions
from manylora.adapters.training.run.kept import Kept, tell_kept
from manylora.adapters.training.run.train import Trained, TrainingResult, conclude
from manylora.adapters.training.session.metrics_log import MetricsLog
from manylora.adapters.training.session.session import Session, open_session
from manylora.adapters.training.trainers.arguments import interval_steps
from manylora.adapters.training.trainers.build import build_trainer

_SHARED = ("base_model", "dtype", "device", "quantization")


@dataclass(frozen=True)
class SharedLoader(BaseLoader):
    """Gives every job the one base that is in memory."""

    model: Any = None

    def load(self) -> Any:
        return self.model


@dataclass
class Job:
    """One adapter in training beside others: its data, matrices, optimizer and step."""

    session: Session
    trainer: Any
    peft_config: Any
    pairs: dict[str, Pair]
    steps: int
    batches: Iterator[dict[str, Tensor]]
    log: MetricsLog
    best: Best
    window: Window = field(default_factory=Window)
    step: int = 0
    seconds: float = 0.0

    @property
    def parameters(self) -> list[Tensor]:
        return [matrix for pair in self.pairs.values() for matrix in pair.parameters]


def train_jobs(
    configs: Sequence[TrainConfig], *, overwrite: bool = False, console: Console | None = None
) -> list[TrainingResult]:
    """Train one adapter for each of ``configs``, all at once.

    Raises:
        TrainingConfigError: they have no common base, or one needs what only a run of its own can do.
        AdapterError: as for :func:`~manylora.adapters.training.run.train.train`; adapters finished before
            stay published.
    """
    console = Console(quiet=True) if console is None else console
    check_jobs(configs)
    sessions = [open_session(config, console) for config in configs]
    for session in sessions:
        session.folder.begin(session.config, session.digests, resume=False, overwrite=overwrite)
    base = sessions[0].loader.load()
    jobs = [_prepare(session, base) for session in sessions]
    _fit(base, jobs, sessions[0].base.pad_id, console)
    return [_finish(job, base, console) for job in jobs]


def check_jobs(configs: Sequence[TrainConfig]) -> None:
    """Raise if ``configs`` can't be trained together.

    Raises:
        TrainingConfigError: with every reason.
    """
    faults = []
    for option in _SHARED:
        values = {getattr(config, option) for config in configs}
        if len(values) > 1:
            faults.append(f"{option}: jobs share one base, so it must be the same in all of them")
    if len({config.output_dir for config in configs}) < len(configs):
        faults.append("output_dir: every job needs one of its own")
    for index, config in enumerate(configs, 1):
        reasons = {
            "task": config.task != "sft",
            "method": config.method != LORA,
            "init": config.converted,
            "modules_to_save": bool(config.modules_to_save),
            "lora_dropout": config.lora_dropout > 0,
            "packing": config.packing,
            "gradient_accumulation_steps": config.gradient_accumulation_steps > 1,
            "gradient_checkpointing": config.gradient_checkpointing,
            "early_stopping_patience": config.early_stopping_patience is not None,
            "sample_prompts": bool(config.sample_prompts),
            "sample_rows": config.sample_rows > 0,
            "report_to": bool(config.report_to),
            "init_adapter": config.init_adapter is not None,
        }
        faults += [
            f"{option}: job {index} ({config.output_dir}) needs a run of its own for it: jobs train LoRA "
            f"(DoRA included) in single batches"
            for option, given in reasons.items()
            if given
        ]
    if faults:
        raise TrainingConfigError("\n".join(faults))


def _prepare(session: Session, base: Any) -> Job:
    """A job with the optimizer, schedule and order of rows that a run of its own would have."""
    loader = SharedLoader(session.config, session.base, session.prepared.classes, base)
    log = MetricsLog(session.folder.metrics)
    trainer, _ = build_trainer(replace(session, loader=loader), [], log)
    pairs = dict(lora_pairs(trainer.model))
    batches = trainer.get_train_dataloader()
    wanted = session.config.max_steps
    steps = math.ceil(session.config.num_train_epochs * len(batches)) if wanted is None else wanted
    trainer.create_optimizer()
    trainer.create_scheduler(num_training_steps=steps)
    peft_config = trainer.model.peft_config["default"]
    trainer.decoder = None  # of this job alone
    trainer.model.unload()  # leaves the base as it was; the matrices live on in ``pairs`` and the optimizer
    return Job(session, trainer, peft_config, pairs, steps, _endless(batches), log, Best())


def _endless(batches: Any) -> Iterator[dict[str, Tensor]]:
    epoch = 0
    while True:
        batches.set_epoch(epoch)
        yield from batches
        epoch += 1


def _fit(base: Any, jobs: Sequence[Job], pad_id: int, console: Console) -> None:
    """Steps of all jobs that have steps left, until none has."""
    started = time.monotonic()
    for job in jobs:
        for matrix in job.parameters:
            matrix.requires_grad_(True)
    first = jobs[0].session
    decoder = fused_decoder(base, [job.pairs for job in jobs], first.config, first.prepared.train.sequences)
    with shared_steps(base, [job.pairs for job in jobs], decoder, pad_id) as steps:
        while active := [index for index, job in enumerate(jobs) if job.step < job.steps]:
            batches = [next(job.batches) if index in active else None for index, job in enumerate(jobs)]
            for index, taken in steps.take(batches).items():
                jobs[index].window.count(taken.right, taken.learned, taken.tokens)
                _update(jobs[index], taken.loss)
            for index in active:
                _evaluate(steps, index, jobs[index])
                jobs[index].seconds = time.monotonic() - started
    tell = ", ".join(f"{job.session.config.adapter_name} {job.steps} steps" for job in jobs)
    console.print(f"trained together in {time.monotonic() - started:.0f} s: {tell}")


def _evaluate(steps: SharedSteps, index: int, job: Job) -> None:
    """Measure ``job`` on its held-out rows where a run of its own would, and remember its best step."""
    config, prepared = job.session.config, job.session.prepared
    every = interval_steps(config.eval_steps, job.steps)
    if prepared.eval is None or (job.step % every and job.step < job.steps):
        return
    loss, accuracy = steps.score(index, prepared.eval.sequences)
    job.log.write("eval", job.step, {"eval_loss": loss, "eval_mean_token_accuracy": accuracy})
    if config.keep == "best":
        job.best.offer(job.step, loss, job.parameters)


def _update(job: Job, loss: float) -> None:
    config, optimizer = job.session.config, job.trainer.optimizer
    limit = config.max_grad_norm if config.max_grad_norm > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(job.parameters, limit)
    rate = job.trainer.lr_scheduler.get_last_lr()[0]
    optimizer.step()
    job.trainer.lr_scheduler.step()
    optimizer.zero_grad()
    job.step += 1
    if not math.isfinite(loss):
        raise TrainingError(
            f"{config.output_dir}: the train loss at step {job.step} is {loss}: lower the learning rate"
        )
    job.window.add_step(loss)
    if job.step == 1 or job.step % config.logging_steps == 0:
        job.log.write(
            "train", job.step, {**job.window.take(), "grad_norm": float(norm), "learning_rate": rate}
        )


def _finish(job: Job, base: Any, console: Console) -> TrainingResult:
    """Write, judge and publish one adapter as a run of its own would."""
    session = job.session
    job.peft_config.init_lora_weights = True  # the matrices are put in below; EVA would ask for data
    job.peft_config.base_model_name_or_path = None  # else PEFT tells that it changes the name
    model = get_peft_model(base, job.peft_config)
    job.best.restore(job.parameters)
    with torch.no_grad():
        for name, pair in lora_pairs(model):
            for own, found in zip(pair.parameters, job.pairs[name].parameters, strict=True):
                own.copy_(found)
    round_as_saved(model, session)
    logits = gate_logits(model, session)
    partial = session.folder.partial
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write_artifact(model, session, partial)
    write_companions(model, session, partial)
    model.unload()
    trainable = sum(matrix.numel() for matrix in job.parameters)
    kept = Kept(job.best.step or job.steps, job.steps)
    tell_kept(kept, job.log, console)
    trained = Trained(logits, job.steps, job.seconds, trainable, kept.step)
    return conclude(session, trained, console)
