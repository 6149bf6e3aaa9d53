"""Small training runs on the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.run.train import TrainingResult, train
from manylora.adapters.training.session.metrics_log import MetricsLog
from manylora.adapters.training.session.session import Session, open_session
from manylora.adapters.training.trainers.build import build_trainer
from tests.support.training_data import chat, write

ROWS = [chat(f"say {n}", f"{n}!") for n in range(24)]
PAIRS = [{"prompt": f"say {n}", "chosen": f"{n}!", "rejected": f"no {n}"} for n in range(24)]
LABELS = [{"text": f"{'good' if n % 2 else 'bad'} {n}", "label": n % 2} for n in range(24)]


def config(base: Path, root: Path, rows: Any = ROWS, name: str = "out", **changes: Any) -> TrainConfig:
    """A run of ten steps in fp32; ``rows`` are written to ``root``."""
    options: dict[str, Any] = {
        "base_model": str(base),
        "train_path": write(root / "data.jsonl", rows),
        "output_dir": root / name,
        "dtype": "fp32",
        "device": "cpu",
        "max_steps": 10,
        "batch_size": 4,
        "lora_r": 4,
        "max_length": 128,
        "eval_split": 0.1,
        "eval_steps": 4,
        "save_steps": 4,
        "learning_rate": 1e-2,
        "sample_tokens": 8,
        "logging_steps": 1,
    }
    return TrainConfig(**{**options, **changes})


def run(config_: TrainConfig, **options: Any) -> TrainingResult:
    """Train in this process."""
    result = train(config_, **options)
    assert result is not None
    return result


def losses(result: TrainingResult, key: str = "loss") -> list[float]:
    """The values of one curve."""
    return [line[key] for line in result.metrics if key in line]


def moved_trainer(settings: TrainConfig, root: Path) -> tuple[Any, Session]:
    """A trainer whose adapter is far from its start, and its session."""
    session = open_session(settings, Console(quiet=True))
    trainer, _ = build_trainer(session, [], MetricsLog(root / "m.jsonl"))
    torch.manual_seed(1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return trainer, session
