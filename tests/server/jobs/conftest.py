"""A registry of jobs on a tiny base, and acts in the middle of their steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manylora.adapters.registry.registry import Registry
from manylora.adapters.training.trainers.sft import SupervisedTrainer
from manylora.server.jobs.training_config import place_of
from manylora.server.jobs.worker import heartbeat
from tests.support.tuning_workers import Setup


@pytest.fixture
def setup(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    with Registry(f"sqlite:///{tmp_path}/registry.db") as registry:
        yield Setup(registry, place_of(str(tiny_llama), tmp_path, "fp32", "cpu"))


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has something done once in the middle of a step, and seen by the worker before it is over.

    Of any job, or of one with a seed of its own.
    """

    def act_at(step: int, act: Callable[[], object], of: int | None = None) -> None:
        original = SupervisedTrainer.compute_loss
        done: list[object] = []

        def compute_loss(self: Any, *args: Any, **options: Any) -> Any:
            is_it = self.state.global_step == step - 1 and of in (None, self.args.seed)
            if is_it and not done:
                done.append(act())
                time.sleep(0.5)
            return original(self, *args, **options)

        monkeypatch.setattr(SupervisedTrainer, "compute_loss", compute_loss)

    return act_at
