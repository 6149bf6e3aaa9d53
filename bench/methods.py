"""What every method of the trainer learns on an example's data in a short run: ``python -m bench.methods``.

Each method trains the real model by its own defaults (rate, sizes), on the same modules where it has any, by
the same rows in the same order for as many steps, passes the publish gate, and is measured on held-out rows
beside the base. The losses say that a method learns, and not which is best: none was tuned, and the runs are
far shorter than real ones.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import AutoTokenizer

from bench import machine, report
from bench.run import RESULTS
from examples.rows import RECIPES, write_rows
from examples.support import SIGNATURE
from manylora.adapters.base_models.catalog import resolve_model
from manylora.adapters.base_models.directory import default_data_dir
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.methods import FULL, METHODS, PROMPTS
from manylora.adapters.training.run.train import TrainingResult, train

BASE = "smollm2-135m"
ROWS, HELD_OUT, STEPS = 16, 4, 8


def write_data(directory: Path) -> None:
    """Write a slice of the support example's rows: ``train.jsonl`` and ``held-out.jsonl``."""
    rows, held_out = write_rows(RECIPES["support"](), directory)
    for path, name, count in ((rows, "train.jsonl", ROWS), (held_out, "held-out.jsonl", HELD_OUT)):
        with path.open(encoding="utf-8") as lines:
            (directory / name).write_text("".join(itertools.islice(lines, count)), encoding="utf-8")


def train_by(method: str, base: str, data: Path, out: Path) -> TrainingResult:
    """A run of ``method`` on the rows in ``data``, with all that has a default left at it."""
    config = TrainConfig(
        base_model=base, method=method, train_path=data / "train.jsonl", eval_path=data / "held-out.jsonl",
        output_dir=out, max_steps=STEPS, batch_size=2, max_length=128, device="cpu", sample_tokens=1,
        eval_steps=10**6, save_steps=10**6, logging_steps=10**6, warmup=0.1, **options_of(method, base),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on its kinds
        result = train(config)
    assert result is not None
    return result


def options_of(method: str, base: str) -> dict[str, Any]:
    """Few modules, so that kinds that make whole matrices in every step take seconds, and needed options."""
    if method in PROMPTS or method == "ln_tuning":
        return {}
    if method != "trainable_tokens":
        return {"target_modules": ["q_proj", "v_proj"]}
    directory = resolve_model(base, default_data_dir())
    ids = AutoTokenizer.from_pretrained(directory)(SIGNATURE, add_special_tokens=False)["input_ids"]
    return {"method_option": {"token_indices": sorted(set(ids))}}  # those of the example's signature


def main(
    methods: Annotated[list[str] | None, typer.Argument(help="Default: all that make an adapter.")] = None,
    *,
    base: Annotated[str, typer.Option(help="Base model.")] = BASE,
) -> None:
    """Measure; prints one JSON line and keeps it in bench/results."""
    console = Console(stderr=True)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    losses: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        write_data(Path(scratch))
        for method in methods or [name for name in METHODS if name != FULL]:
            result = train_by(method, base, Path(scratch), Path(scratch) / method)
            scores = result.baseline
            losses[method] = {"base": scores.base["loss"], "adapter": scores.adapter["loss"]}
            console.print(f"{method:20} {scores.base['loss']:.4f} -> {scores.adapter['loss']:.4f}")
    what = {"base": base, "steps": STEPS, "rows": ROWS, "held_out": HELD_OUT}
    line = json.dumps({"bench": "methods", **machine.setting(), **what, "losses": losses})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-methods")
    print(line)


if __name__ == "__main__":
    typer.run(main)
