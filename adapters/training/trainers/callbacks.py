"""What happens at the steps of a run: lines of metrics.jsonl, a bar, marked checkpoints, an end by signal."""

# ruff: noqa: ARG002 - a callback takes what the trainer passes, by position
from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from manylora.adapters.disk import follow_umask, sync_path
from manylora.adapters.progress_bars import progress_bars
from manylora.adapters.training.errors import TrainingError
from manylora.adapters.training.session.folder import COMPLETE
from manylora.adapters.training.session.metrics_log import MetricsLog

_RENAMED = {
    "mean_token_accuracy": "token_accuracy",
    "num_tokens": "tokens",
    "num_input_tokens_seen": "tokens",
}
_ON_THE_BAR = ("loss", "eval_loss", "speed")
_DROPPED = {"total_flos", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


class Speed:
    """Tokens a second from one log of the trainer to the next."""

    def __init__(self) -> None:
        self._then, self._before = time.monotonic(), math.nan

    def since_last(self, logs: Mapping[str, Any]) -> float | None:
        """Tokens a second since the last call; None at the first call, and where ``logs`` count none."""
        tokens = next(
            (float(logs[key]) for key in ("num_tokens", "num_input_tokens_seen") if key in logs), None
        )
        if tokens is None:
            return None
        then, before = self._then, self._before
        self._then, self._before = time.monotonic(), tokens
        speed = (tokens - before) / max(1e-9, self._then - then)
        return None if math.isnan(speed) else speed


class LogCallback(TrainerCallback):  # type: ignore[misc]
    """Writes the trainer's logs to metrics.jsonl and refuses to go on with a loss that is no number."""

    def __init__(self, log: MetricsLog) -> None:
        self._log = log
        self._speed = Speed()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        logs = {} if logs is None else logs
        values = {_RENAMED.get(k, k): v for k, v in logs.items() if k not in _DROPPED}
        if not state.is_world_process_zero or not (values.keys() & {"loss", "eval_loss"}):
            return
        kind = "eval" if "eval_loss" in values else "train"
        if kind == "train":
            speed = self._speed.since_last(logs)
            values |= {} if speed is None else {"tokens_per_second": round(speed, 1)}
        self._log.write(kind, state.global_step, values)
        loss = float(values["eval_loss" if kind == "eval" else "loss"])
        if not math.isfinite(loss):
            raise TrainingError(
                f"the {kind} loss at step {state.global_step} is {loss}: lower the learning rate or "
                f"try dtype fp32"
            )


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint once all of it is on the disk; one without the mark is never resumed from."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        follow_umask(directory)
        for path in directory.iterdir():
            sync_path(path)
        (directory / COMPLETE).touch()
        sync_path(directory)


class RateCallback(TrainerCallback):  # type: ignore[misc]
    """Sets the learning rate of the first step after a resumption, whose schedule may have become longer."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **_: Any
    ) -> None:
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)  # without accelerate's wrapper
        if state.global_step == 0 or not hasattr(schedule, "lr_lambdas"):
            return
        shapes = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        rates = [highest * shape(schedule.last_epoch) for highest, shape in shapes]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates  # what is logged for that step


class BestCallback(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint after each evaluation with a lower loss than any before."""

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **_: Any
    ) -> None:
        loss = math.inf if metrics is None else metrics.get("eval_loss", math.inf)
        if args.load_best_model_at_end and (state.best_metric is None or loss < state.best_metric):
            control.should_save = True


class BarCallback(TrainerCallback):  # type: ignore[misc]
    """One line on the terminal: steps, loss, eval loss, tokens a second, time left."""

    def __init__(self, console: Console) -> None:
        columns = (MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
        self._bar = progress_bars(*columns, console=console)
        self._task: TaskID | None = None
        self._shown: dict[str, str] = {}
        self._speed = Speed()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._task = self._bar.add_task(
                "training", total=state.max_steps, completed=state.global_step, figures=""
            )
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if self._task is None or logs is None:
            return
        for key, name in (("loss", "loss"), ("eval_loss", "eval loss")):
            if key in logs:
                self._shown[key] = f"{name} {float(logs[key]):.3f}"
        speed = self._speed.since_last(logs)
        if speed is not None:
            self._shown["speed"] = f"{speed:.0f} tokens/s"
        self._bar.update(
            self._task, figures="  ".join(self._shown[key] for key in _ON_THE_BAR if key in self._shown)
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop the bar and leave the terminal as it was."""
        self._bar.stop()


class StopCallback(TrainerCallback):  # type: ignore[misc]
    """Ends the run after the current step with a checkpoint, once it is asked to, from any thread."""

    def __init__(self) -> None:
        self.reason: str | None = None  # why it is to stop

    def ask(self, reason: str) -> None:
        """Stop once the current step is done."""
        self.reason = reason

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.reason is not None:
            control.should_save = True
            control.should_training_stop = True


@contextmanager
def stop_on_signals(callback: StopCallback) -> Iterator[None]:
    """SIGINT and SIGTERM ask ``callback`` to stop; a second one ends the process at once.

    Only the main thread gets signals; on another one nothing is changed. Nor is it in one of several
    processes, which would stop at different steps: there the last checkpoint is what is resumed from.
    """

    def ask(number: int, _frame: FrameType | None) -> None:
        callback.ask(f"stopped by {signal.Signals(number).name}")
        signal.signal(number, previous[signal.Signals(number)])

    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if threading.current_thread() is not threading.main_thread() or not is_alone:
        yield
        return
    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
