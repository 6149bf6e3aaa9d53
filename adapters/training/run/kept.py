"""Where a run ended and which step's weights it keeps, and saying so where it is not the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from manylora.adapters.training.session.metrics_log import MetricsLog, early_stop, read_metrics


@dataclass(frozen=True, slots=True)
class Kept:
    """The step whose weights are kept, and how many were taken."""

    step: int
    steps: int


def kept_of(trainer: Any) -> Kept:
    """The step that the trainer of a finished run has loaded: its best one if it keeps that."""
    state = trainer.state
    is_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    return Kept(int(state.best_global_step) if is_best else state.global_step, state.global_step)


def tell_stopped(log: MetricsLog, console: Console) -> None:
    """Print that the run ended early, if it did."""
    early = early_stop(read_metrics(log.path))
    if early is not None:
        console.print(f"stopped early: {early}", highlight=False, soft_wrap=True)


def tell_kept(kept: Kept, log: MetricsLog, console: Console) -> None:
    """Print that an earlier step than the last is kept, with both held-out losses, and log it."""
    if kept.step == kept.steps:
        return
    losses = {line["step"]: line["eval_loss"] for line in read_metrics(log.path) if "eval_loss" in line}
    values = {"kept_step": kept.step, "eval_loss_kept": losses.get(kept.step)}
    log.write("kept", kept.steps, values)
    console.print(
        f"kept step {kept.step} of {kept.steps}: its held-out loss {_shown(losses.get(kept.step))} is the "
        f"lowest; at the end it was {_shown(losses.get(kept.steps))} (--keep last publishes the last step)",
        highlight=False,
        soft_wrap=True,
    )


def _shown(loss: float | None) -> str:
    return "(unknown)" if loss is None else f"{loss:.3f}"
