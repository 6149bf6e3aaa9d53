"""The trainer's two paths beside each other: speed and memory of the fused decoder and of the modules.

``bench.training`` runs this file once for every run that it measures, so that what one keeps in memory is no
part of the other's figures: ``python -m bench.training_paths PATH FILE`` trains as FILE says, through the
fused decoder (``fused``) or the modules of transformers and PEFT (``modules``), and prints one JSON line.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.config_load import load_config, to_yaml
from manylora.adapters.training.session.metrics_log import MetricsLog
from manylora.adapters.training.session.session import open_session
from manylora.adapters.training.trainers.build import build_trainer

PATHS = ("fused", "modules")
Measured = dict[str, Any]  # tokens_per_second, peak_mib, training_mib, losses


def beside(config: TrainConfig, repeat: int, console: Console, run: Callable[..., Measured]) -> Measured:
    """Medians of both paths in turn, and how far the losses of their steps are apart.

    Args:
        run: measures one run of a configuration through one path: :func:`in_process_of_its_own`.
    """
    found: dict[str, list[Measured]] = {path: [] for path in PATHS}
    for _ in range(repeat):
        for path, measured in found.items():
            measured.append(run(config, path))
            console.print(f"{path:8} { ({k: v for k, v in measured[-1].items() if k != 'losses'}) }")
    numbers = {
        path: {
            name: round(statistics.median(one[name] for one in measured), 1)
            for name in ("tokens_per_second", "peak_mib", "training_mib")
        }
        for path, measured in found.items()
    }
    curves = zip(*(measured[-1]["losses"] for measured in found.values()), strict=True)
    ours, theirs = (numbers[path] for path in PATHS)
    return {
        **numbers,
        "speed_ratio": round(ours["tokens_per_second"] / theirs["tokens_per_second"], 3),
        "memory_ratio": round(ours["training_mib"] / max(1.0, theirs["training_mib"]), 3),
        "largest_loss_difference": round(max(abs(a - b) for a, b in curves), 5),
    }


def in_process_of_its_own(config: TrainConfig, path: str) -> Measured:
    """One run of ``config`` through ``path``."""
    file = config.output_dir.with_name(f"{path}.yaml")
    file.write_text(to_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "bench.training_paths", path, str(file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(config: TrainConfig, path: str) -> Measured:
    """Tokens a second of a run through ``path``, its memory in MiB, and the losses of its steps.

    ``peak_mib`` is the largest resident size of the process while it trains, and ``training_mib`` what that
    is above its size with the model loaded.
    """
    session = open_session(config, Console(quiet=True))
    trainer, _ = build_trainer(session, [], MetricsLog(config.output_dir.with_suffix(".jsonl")))
    if trainer.decoder is None:
        raise SystemExit("this run has no fused decoder: its log says why")
    if path == "modules":
        trainer.decoder = None
    before = resident_peak(reset=True)
    started = time.perf_counter()
    trainer.train()
    spent = time.perf_counter() - started
    peak = resident_peak()
    return {
        "tokens_per_second": float(trainer._total_train_tokens) / spent,
        "peak_mib": peak,
        "training_mib": peak - before,
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
    }


def resident_peak(*, reset: bool = False) -> float:
    """The largest resident size of this process in MiB, since it was ``reset`` to what it is now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def main(path: str, file: Path) -> None:
    """Measure one run."""
    print(json.dumps(measure(load_config({}, file), path)))


if __name__ == "__main__":
    typer.run(main)
