"""Training speed beside plain TRL: ``python -m bench.training``. Prints one JSON line last.

Both train the same adapter on the same tokens in the same batches with the same arguments, in turn in one
process; what differs is the trainer class. Figures are tokens a second of whole steps, without evaluation.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from trl import SFTTrainer

from adapters.training.build import build_trainer
from adapters.training.config import TrainConfig
from adapters.training.progress import MetricsLog
from adapters.training.run import open_session
from examples.rows import RECIPES, write_rows


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


def main(
    *,
    base: Annotated[str, typer.Option(help="Base model.")] = "smollm2-135m",
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps of a run.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many runs of each.")] = 3,
) -> None:
    """Measure both in turn and compare."""
    console = Console(stderr=True)
    kinds: dict[str, Callable[[Any], Any]] = {"manylora": lambda trainer: trainer, "trl": plain_trl}
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        data = Path(scratch) / "rows.jsonl"
        write_rows(RECIPES["support"](), data)
        config = TrainConfig(
            base_model=base, train_path=data, output_dir=Path(scratch) / "out", max_steps=steps,
            batch_size=batch_size, max_length=256, eval_split=0, save_steps=10**9, logging_steps=10**6,
        )  # fmt: skip
        session = open_session(config, Console(quiet=True))
        for _ in range(repeat):
            for name, make in kinds.items():
                ours, _ = build_trainer(session, [], MetricsLog(Path(scratch) / "metrics.jsonl"))
                trainer = make(ours)
                spent = seconds_of(trainer)
                tokens = float(trainer._total_train_tokens)
                speeds[name].append(tokens / spent)
                console.print(f"{name:10} {tokens / spent:8.1f} tokens/s")
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    result = {name: round(value, 1) for name, value in medians.items()}
    print(json.dumps({**result, "ratio": round(medians["manylora"] / medians["trl"], 3), "steps": steps}))


if __name__ == "__main__":
    typer.run(main)
