"""Training speed: beside plain TRL, and of several adapters together beside one by one.

Run as ``python -m bench.training``. Both trainers train the same adapter on the same tokens in batches
of the same rows with the same arguments, in turn in one process; what differs is the trainer class: tokens a
second of whole steps, without evaluation.

Small jobs are then trained as ``manylora train --jobs`` does and one after another in the same process, each
from data file to published adapter.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from trl import SFTTrainer

from bench import machine, report
from bench.run import RESULTS
from examples.rows import RECIPES, write_rows
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.jobs.train_jobs import train_jobs
from manylora.adapters.training.run.train import train
from manylora.adapters.training.session.metrics_log import MetricsLog
from manylora.adapters.training.session.session import open_session
from manylora.adapters.training.trainers.build import build_trainer


def seconds_of(trainer: Any) -> float:
    """The seconds that a whole training run takes."""
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def plain_trl(trainer: Any) -> Any:
    """TRL's own trainer with the model, arguments and rows of ours."""
    return SFTTrainer(
        model=trainer.model,
        args=trainer.args,
        train_dataset=trainer.train_dataset,
        processing_class=trainer.processing_class,
    )


def beside_trl(config: TrainConfig, repeat: int, console: Console) -> dict[str, float]:
    """Median tokens a second of this trainer and of plain TRL."""
    kinds: dict[str, Callable[[Any], Any]] = {"manylora": lambda trainer: trainer, "trl": plain_trl}
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    session = open_session(config, Console(quiet=True))
    for _ in range(repeat):
        for name, make in kinds.items():
            ours, _ = build_trainer(session, [], MetricsLog(config.output_dir.with_suffix(".jsonl")))
            trainer = make(ours)
            spent = seconds_of(trainer)
            tokens = float(trainer._total_train_tokens)
            speeds[name].append(tokens / spent)
            console.print(f"{name:10} {tokens / spent:8.1f} tokens/s")
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    rounded = {f"{name}_tokens_per_second": round(value, 1) for name, value in medians.items()}
    return rounded | {"ratio": round(medians["manylora"] / medians["trl"], 3)}


def together(config: TrainConfig, jobs: int, console: Console) -> dict[str, float]:
    """Seconds for ``jobs`` small adapters in one run, and one by one."""
    small = [
        config.model_copy(update={"seed": seed, "batch_size": 1, "max_steps": 8, "sample_tokens": 8})
        for seed in range(jobs)
    ]

    def named(kind: str) -> list[TrainConfig]:
        root = config.output_dir.with_name(kind)
        return [job.model_copy(update={"output_dir": root / str(job.seed)}) for job in small]

    started = time.perf_counter()
    train_jobs(named("together"))
    between = time.perf_counter()
    for job in named("alone"):
        train(job)
    ended = time.perf_counter()
    result = {"together_seconds": between - started, "one_by_one_seconds": ended - between}
    console.print(f"{jobs} jobs: {result}")
    return {name: round(value, 1) for name, value in result.items()}


def main(
    *,
    base: Annotated[str, typer.Option(help="Base model.")] = "smollm2-135m",
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps of a run.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many runs of each.")] = 3,
    jobs: Annotated[int, typer.Option(min=2, help="Small adapters, of eight rows each.")] = 4,
) -> None:
    """Measure; prints one JSON line and keeps it in bench/results."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        data, _ = write_rows(RECIPES["support"](), Path(scratch))
        config = TrainConfig(
            base_model=base, train_path=data, output_dir=Path(scratch) / "out", max_steps=steps,
            batch_size=batch_size, max_length=256, eval_split=0, save_steps=10**9, logging_steps=10**6,
        )  # fmt: skip
        figures = beside_trl(config, repeat, console)
        figures |= together(config, jobs, console)
    what = {"base": base, "steps": steps, "batch_size": batch_size, "jobs": jobs}
    line = json.dumps({"bench": "training", **machine.setting(), **what, **figures})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-training")
    print(line)


if __name__ == "__main__":
    typer.run(main)
