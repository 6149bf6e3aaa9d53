"""What drawing the next tokens costs, by the native kernel and by PyTorch, in turns in one process.

Run as ``python -m bench.sampling``. The logits are a base's own, after each token of a text, and the same
ones flattened, so that top-p keeps most of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from statistics import median
from time import perf_counter
from typing import Annotated

import numpy as np
import torch
import typer

from bench import machine, report
from bench.run import RESULTS, resolve_base
from manylora.server.cli.loadgen.generated_prompts import english
from manylora.server.kernels.cpu.library import best_library
from manylora.server.kernels.cpu.sampling import NativeDraw
from manylora.server.kernels.draws import Draw, Draws
from manylora.server.kernels.reference import sampling
from manylora.server.model.loading.loader import load_model

_COLD = 1 << 24  # bytes written between two calls, as a step writes and reads other memory
KINDS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {},
    "temperature 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "top-p 0.9": {"top_p": 0.9},
    "top-k 50": {"top_k": 50},
    "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
    "temperature 1.5, top-p 0.99": {"temperature": 1.5, "top_p": 0.99},
}


def draws_of(logits: torch.Tensor, params: dict[str, float], rng: np.random.Generator) -> Draws:
    """All rows with the same parameters."""
    count = len(logits)
    return Draws(
        logits,
        temperature=np.full(count, params.get("temperature", 1.0), np.float32),
        top_k=np.full(count, params.get("top_k", 0), np.int64),
        top_p=np.full(count, params.get("top_p", 1.0), np.float64),
        min_p=np.full(count, params.get("min_p", 0.0), np.float32),
        uniform=rng.random(count),
    )


@torch.inference_mode()
def logits_of(base: str, rows: int) -> torch.Tensor:
    """Float32 logits [rows, V] after the last tokens of a text."""
    loaded = load_model(resolve_base(base), dtype="bf16", device="cpu", max_model_len=None)
    ids = loaded.tokenizer.encode(english(2 * rows, "sampling"))
    logits: torch.Tensor = loaded.hf(input_ids=torch.tensor([ids])).logits[0, -rows:]
    return logits.float()


def milliseconds(calls: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """The median time of each; they take turns, each with cold caches."""
    cold = np.zeros(_COLD, np.uint8)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeat + 1):
        for name, call in calls.items():
            cold += 1
            began = perf_counter()
            call()
            if turn:
                times[name].append(1e3 * (perf_counter() - began))
    return {name: round(median(own), 3) for name, own in times.items()}


def main(
    *,
    base: Annotated[str, typer.Option(help="Base model.")] = "smollm2-135m",
    rows: Annotated[int, typer.Option(min=1)] = 32,
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many calls.")] = 15,
) -> None:
    """Measure; prints one JSON line and keeps it in bench/results."""
    threads = torch.get_num_threads()
    backends: dict[str, Draw] = {
        "pytorch": sampling.draw,
        "native, one thread": NativeDraw(best_library().native, 1),
        f"native, {threads} threads": NativeDraw(best_library().native, threads),
    }
    rng = np.random.default_rng(0)
    logits = logits_of(base, rows)
    tables = {name: (logits, params) for name, params in KINDS.items()}
    tables["top-p 0.9 of a flat distribution"] = (logits / 8, {"top_p": 0.9})
    found = {}
    for name, (table, params) in tables.items():
        draws = draws_of(table, params, rng)
        found[name] = milliseconds({n: partial(draw, draws) for n, draw in backends.items()}, repeat)
        print(f"{name:36}" + "".join(f"{backend:>20} {ms:7.2f}" for backend, ms in found[name].items()))
    setting = {**machine.setting(), "base": base, "rows": rows, "vocabulary": logits.shape[1]}
    line = json.dumps({"bench": "sampling", **setting, "milliseconds": found})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-sampling")
    print(line)


if __name__ == "__main__":
    typer.run(main)
