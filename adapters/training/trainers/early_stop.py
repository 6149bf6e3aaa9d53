"""Ending a run whose held-out loss falls no more."""

# ruff: noqa: ARG002 - a callback takes what the trainer passes, by position
from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from manylora.adapters.training.session.metrics_log import STOPPED, MetricsLog


class EarlyStopCallback(TrainerCallback):  # type: ignore[misc]
    """Stops after so many evaluations in a row without a lower loss than the lowest before, and says so.

    What was measured is in the trainer's state, and with it in every checkpoint: where transformers' own
    callback would count anew, a resumed run stops where it would have stopped.
    """

    def __init__(self, patience: int, log: MetricsLog) -> None:
        self._patience, self._log = patience, log

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps or not is_stalled(state, self._patience):
            return
        control.should_training_stop = True
        if state.is_world_process_zero:
            values = {"evaluations": self._patience, "planned_steps": state.max_steps}
            self._log.write(STOPPED, state.global_step, values)


def is_stalled(state: Any, patience: int) -> bool:
    """Whether the lowest held-out loss in a trainer's state is ``patience`` evaluations old or older."""
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience
