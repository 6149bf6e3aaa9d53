"""One training run from configuration to published adapter (or model)."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerCallback, TrainerState

from manylora.adapters.disk import follow_umask, sync_path
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import CheckpointError, Interrupted, TrainingConfigError
from manylora.adapters.training.gate.baseline import Baseline, measure_baseline, worse_than_base
from manylora.adapters.training.gate.publish_gate import (
    GateLogits,
    GateResult,
    check,
    check_classes,
    check_pooling,
    gate_logits,
)
from manylora.adapters.training.model.loading import BaseLoader
from manylora.adapters.training.model.lora import InitialWeights
from manylora.adapters.training.report.card import Outcome, card
from manylora.adapters.training.report.page import write_report
from manylora.adapters.training.run.export import (
    read_initial,
    round_as_saved,
    save_initial,
    write_artifact,
    write_companions,
    write_model,
)
from manylora.adapters.training.run.kept import kept_of, tell_kept, tell_stopped
from manylora.adapters.training.run.upload import upload
from manylora.adapters.training.session.folder import Folder
from manylora.adapters.training.session.metrics_log import MetricsLog, read_metrics, sample_line
from manylora.adapters.training.session.processes import is_main_process, spreads_the_model
from manylora.adapters.training.session.session import Session, open_session
from manylora.adapters.training.trainers.build import build_trainer
from manylora.adapters.training.trainers.callbacks import (
    BarCallback,
    BestCallback,
    CheckpointCallback,
    LogCallback,
    RateCallback,
    StopCallback,
    stop_on_signals,
)
from manylora.adapters.training.trainers.early_stop import is_stalled
from manylora.adapters.training.trainers.samples import prompts_of_rows


@dataclass(frozen=True)
class TrainingResult:
    """What a training run made: where it lies, how it was judged, what was measured."""

    adapter: Path  # the published artifact; of a full fine-tuning the model's directory
    steps: int
    seconds: float  # of training
    baseline: Baseline
    gate: GateResult
    metrics: tuple[dict[str, Any], ...]  # the lines of metrics.jsonl
    kept_step: int  # whose weights were published
    warnings: tuple[str, ...]  # by what it is worse than the base


@dataclass(frozen=True)
class Watch:
    """How a program that trains an adapter follows the run, and stops it."""

    stop: StopCallback = field(default_factory=StopCallback)
    callbacks: Callable[[Session], Sequence[TrainerCallback]] = lambda _: ()
    told: Callable[[Mapping[str, Any]], None] | None = None  # called with each line of metrics.jsonl
    lineage: Mapping[str, Any] = field(default_factory=dict)  # recorded in the adapter's file
    loader: Callable[[Session], BaseLoader] = lambda session: session.loader
    begun: Callable[[Any], None] = lambda _: None  # called with the trainer before its first step


@dataclass(frozen=True)
class Trained:
    """What is left of the trained model once it is freed."""

    logits: GateLogits
    steps: int
    seconds: float
    trainable: int
    kept_step: int | None = None  # whose weights they are; None for the last


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    watch: Watch | None = None,
) -> TrainingResult | None:
    """Train one adapter and publish it to ``output_dir/adapter``.

    Args:
        resume: go on from the last checkpoint in ``output_dir``.
        overwrite: replace the run in ``output_dir``.
        console: where progress is shown; None works silently.
        watch: how a program that runs this follows it, and stops it.

    Returns:
        The result; None in the processes of a distributed run that write no files.

    Raises:
        DataError: the data can't be trained on; nothing has been written.
        RunExists, CheckpointError: ``output_dir`` is not as ``resume`` and ``overwrite`` say.
        Interrupted: SIGINT or SIGTERM came, or ``watch`` asked for it; a checkpoint was written.
        GateFailed: the adapter would not serve as trained; it was not published.
        PublishError: the server did not take the adapter, which stays in ``output_dir``.
        AdapterError: anything else that stops a run, as a sentence.
    """
    console = Console(quiet=True) if console is None or not is_main_process() else console
    watch = Watch() if watch is None else watch
    session = replace(open_session(config, console), lineage=watch.lineage)
    session = replace(session, loader=watch.loader(session))
    checkpoint = _begin(session, resume=resume, overwrite=overwrite)
    log = MetricsLog(session.folder.metrics, watch.told)
    trained = _fit(session, checkpoint, console, watch, log)
    if not is_main_process():
        return None
    return conclude(session, trained, console, log)


def conclude(session: Session, trained: Trained, console: Console, log: MetricsLog) -> TrainingResult:
    """Judge what a run left in its partial directory, and publish it with its reports.

    ``log`` gets what the result answers to rows that are sampled.

    Raises:
        GateFailed, PublishError: as for :func:`train`.
    """
    baseline, gate = judge(session, trained, console)
    warnings = worse_than_base(baseline, session.config.task)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    kept = trained.steps if trained.kept_step is None else trained.kept_step
    _log_samples(log, baseline, kept)
    metrics = read_metrics(session.folder.metrics)
    outcome = Outcome(
        baseline, gate, metrics, trained.steps, trained.seconds, trained.trainable, kept, warnings
    )
    finish(session, outcome, console)
    return TrainingResult(
        session.folder.finished,
        trained.steps,
        trained.seconds,
        baseline,
        gate,
        tuple(metrics),
        kept,
        warnings,
    )


def _log_samples(log: MetricsLog, baseline: Baseline, step: int) -> None:
    for sample in baseline.samples:
        if sample.prompt.line is not None:
            log.write("sample", step, sample_line(sample.prompt, sample.base, sample.adapter, published=True))


def _begin(session: Session, *, resume: bool, overwrite: bool) -> Path | None:
    """Make the output directory ready; the checkpoint to go on from, if any. Only the main process writes."""
    folder = session.folder
    if not is_main_process():
        return folder.last_checkpoint() if resume else None
    return folder.begin(session.config, session.digests, resume=resume, overwrite=overwrite)


def _fit(
    session: Session, checkpoint: Path | None, console: Console, watch: Watch, log: MetricsLog
) -> Trained:
    """Train, and leave the artifact in the run's partial directory."""
    stop, bar = watch.stop, BarCallback(console)
    if checkpoint is not None and is_main_process():
        log.rewind(int(checkpoint.name.rpartition("-")[2]))
    if session.config.is_full and spreads_the_model():
        raise TrainingConfigError("--method full: not with FSDP or DeepSpeed, which spread the weights")
    if session.config.method == "adalora" and checkpoint is not None:
        raise CheckpointError("--resume: what AdaLoRA knows of its ranks is in no checkpoint; start anew")
    callbacks = [RateCallback(), LogCallback(log), BestCallback(), CheckpointCallback(), bar, stop]
    callbacks += watch.callbacks(session)
    trainer, initial = build_trainer(session, callbacks, log)
    watch.begun(trainer)
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    initial = _keep_initial(session.folder, initial, resumed=checkpoint is not None)
    started = time.monotonic()
    try:
        with stop_on_signals(stop):
            _train(trainer, checkpoint, session.config.early_stopping_patience)
    finally:
        bar.close()
    seconds = time.monotonic() - started
    if stop.reason is not None:
        raise Interrupted(
            f"{stop.reason} at step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}; --resume goes on from there"
        )
    kept = kept_of(trainer)
    if is_main_process():
        tell_stopped(log, console)
        tell_kept(kept, log, console)
    logits = _export(session, trainer, initial)
    return Trained(logits, kept.steps, seconds, trainable, kept.step)


def _train(trainer: Any, checkpoint: Path | None, patience: int | None) -> None:
    """The steps that are left; none after the last one, where transformers would take one more.

    Nor after the one at which the run was stopped early.

    Raises:
        CheckpointError: fewer steps are asked for than were taken.
    """
    if checkpoint is None:
        trainer.train()
        return
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    *_, wanted = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    if state.global_step > wanted:
        raise CheckpointError(
            f"{checkpoint}: {state.global_step} steps were taken already, more than the {wanted} of this "
            f"configuration: raise max_steps or num_train_epochs"
        )
    is_over = state.global_step == wanted or (patience is not None and is_stalled(state, patience))
    if not is_over or spreads_the_model():
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    trainer.state = state
    is_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    trainer._load_from_checkpoint(state.best_model_checkpoint if is_best else str(checkpoint))


def _keep_initial(folder: Folder, initial: InitialWeights, *, resumed: bool) -> InitialWeights:
    if not initial:
        return initial
    if resumed:
        return read_initial(folder.initial)
    if is_main_process():
        save_initial(initial, folder.initial)
    return initial


def _export(session: Session, trainer: Any, initial: InitialWeights) -> GateLogits:
    """Write the artifact and compute the logits that the gate compares; the model is freed on return."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    round_as_saved(model, session)
    logits = gate_logits(model, session)
    if is_main_process():
        partial = session.folder.partial
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        if session.config.is_full:
            write_model(model, session, partial)
        else:
            write_artifact(model, session, partial, initial=initial, state=state)
        write_companions(model, session, partial)
    trainer.accelerator.free_memory()
    return logits


def judge(session: Session, trained: Trained, console: Console) -> tuple[Baseline, GateResult]:
    """Reload what was written onto a pristine base, compare, and measure it beside the base."""
    gc.collect()
    if session.loader.device.type == "cuda":
        torch.cuda.empty_cache()
    console.print(f"reading the {session.config.product} back, and comparing it with what was trained")
    finished = session.loader.load_finished(session.folder.partial)
    reloaded = gate_logits(finished.model, session)
    with finished.base() as model:
        base = gate_logits(model, session)
    gate = check(trained.logits, reloaded, base, session)
    check_classes(session)
    check_pooling(session)
    return measure_baseline(finished, session, prompts_of_rows(session)), gate


def finish(session: Session, outcome: Outcome, console: Console) -> None:
    """Publish what was made, write the report, and send an adapter to a server where one is named."""
    config = session.config
    _publish(session, outcome)
    write_report(session, outcome)
    console.print(f"{config.product}: {session.folder.finished}", highlight=False, soft_wrap=True)
    if config.publish is not None:
        upload(session.folder.finished, config.publish, config.adapter_name)
        console.print(f"served as {config.adapter_name} at {config.publish}", highlight=False, soft_wrap=True)


def _publish(session: Session, outcome: Outcome) -> None:
    """Add the card, flush everything, and let the result appear by one rename."""
    folder = session.folder
    (folder.partial / "README.md").write_text(card(session, outcome), encoding="utf-8")
    follow_umask(folder.partial)
    for path in (*folder.partial.rglob("*"), folder.partial):
        sync_path(path)
    if folder.finished.exists():  # of the same run, before it was resumed
        shutil.rmtree(folder.finished)
    folder.partial.rename(folder.finished)
    sync_path(folder.root)
