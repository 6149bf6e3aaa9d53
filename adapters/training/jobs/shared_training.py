"""Runs on one base in threads of one process, which begin and end independently of each other.

There is one copy of the base. Each run is that of :func:`~manylora.adapters.training.run.train.train`, with
its own data, optimizer, schedule, random numbers, checkpoints and judgement; one of them runs at a time, and
they meet before each step. Those that train through the fused decoder without dropout take the step together,
in one pass over the batches of all; the others, in their turn, one by one. A run that is alone is what it
always is.
"""

from __future__ import annotations

# ruff: noqa: ARG002 - a callback takes what the trainer passes, by position
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from manylora.adapters.training.jobs.joint_steps import JointLosses, JointSteps
from manylora.adapters.training.jobs.shared_base import SharedBase
from manylora.adapters.training.jobs.turns import Turns


class SharedTraining:
    """What runs in threads share. Pass :attr:`base`'s loader and :meth:`begun` to the run's ``Watch``."""

    def __init__(self) -> None:
        self.base = SharedBase()
        self._steps = JointSteps()
        self._turns = Turns(self._steps.take)
        self._lock = threading.Lock()
        self._count = 0

    @contextmanager
    def taking_part(self) -> Iterator[None]:
        """Run the block among the others, when it is this thread's turn."""
        with self._lock:
            self._count += 1
        try:
            with self._turns.taking_part():
                yield
        finally:
            with self._lock:
                self._count -= 1
                if not self._count:
                    self._steps.clear()
                    self.base.clear()
                    _free()

    def begun(self, trainer: Any) -> None:
        """Have a run's trainer meet the others before each of its steps."""
        decoder = getattr(trainer, "decoder", None)
        if decoder is None:
            trainer.add_callback(_MeetCallback(self._turns))
        else:
            trainer.joint = JointLosses(decoder, self._turns)


class _MeetCallback(TrainerCallback):  # type: ignore[misc]
    """Gives up the turn before each step, which the run then takes by itself."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._turns.meet(None)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
