"""A base in few bits beside itself in bf16: speed of a step, memory of the weights, and quality.

    python -m bench.quantized
    python -m bench.quantized --also model-Q4_0.gguf --also ./model-AWQ

The kinds take turns step by step in one process, so that all meet the same machine; nothing else may run.
Quality is what the model says next at every position of the texts of ``bench.int8_quality`` (prose, code, its
own chat answers): how often it ranks the same token first as in bf16, and the KL divergence from bf16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from transformers import AutoTokenizer

from bench import machine, report
from bench.int8_quality import compared, log_probabilities, probe_texts
from bench.run import RESULTS, resolve_base
from bench.steps import Shape, Workbench
from manylora.adapters.base_models.catalog import resolve_model
from manylora.adapters.base_models.directory import default_data_dir
from manylora.server.kernels.inputs import StepInputs
from manylora.server.model.loading.loader import load_model

PLAIN = "bf16"
KINDS = ("nf4", "int8")
SHAPES = {
    "1": Shape(1),
    "1, an adapter": Shape(1, distinct=1),
    "8": Shape(8),
    "8, all distinct": Shape(8, distinct=8),
    "32": Shape(32),
    "32, all distinct": Shape(32, distinct=32),
    "prompt of 512": Shape(1, 512, rows=512),
}


@dataclass(frozen=True, slots=True)
class Base:
    """One way to keep a base."""

    name: str
    directory: Path
    quantize: str  # of ``--quantize``


def bases(base: Path, also: Sequence[str]) -> list[Base]:
    """bf16 first, then what is made of it, then checkpoints that are quantized already."""
    made = [Base(kind, base, kind) for kind in KINDS]
    others = [Base(Path(name).name, resolve_model(name, default_data_dir()), "none") for name in also]
    return [Base(PLAIN, base, "none"), *made, *others]


def speeds(
    benches: Mapping[str, Workbench], shapes: Mapping[str, Shape], repeat: int
) -> dict[str, dict[str, float]]:
    """Tokens a second, of the median step, by shape and base."""
    found: dict[str, dict[str, float]] = {}
    for name, shape in shapes.items():
        inputs = {base: bench.inputs(shape) for base, bench in benches.items()}
        times: dict[str, list[float]] = {base: [] for base in benches}
        for turn in range(1 + repeat):
            for base, bench in benches.items():
                seconds = _seconds(bench, inputs[base])
                if turn:
                    times[base].append(seconds)
        found[name] = {base: shape.batch * shape.rows / median(own) for base, own in times.items()}
    return found


def _seconds(bench: Workbench, inputs: StepInputs) -> float:
    begin = perf_counter()
    bench.decoder.step(inputs)
    return perf_counter() - begin


def qualities(kinds: Sequence[Base]) -> dict[str, dict[str, float]]:
    """Agreement with bf16 and KL divergence from it, of all but bf16, by base."""
    plain = _model(kinds[0])
    windows = probe_texts(plain, AutoTokenizer.from_pretrained(kinds[0].directory))
    exact = [log_probabilities(plain, window) for window in windows]
    found = {}
    for base in kinds[1:]:
        row = compared(base.name, _model(base), windows, exact)
        found[base.name] = {"top1": row.agreement, "kl": row.kl, "positions": row.positions}
    return found


def _model(base: Base) -> Any:
    return load_model(
        base.directory, dtype="bf16", device="cpu", max_model_len=None, quantize=base.quantize
    ).hf


def measure(
    kinds: Sequence[Base], shapes: Mapping[str, Shape], repeat: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]], dict[str, str]]:
    """Speeds, bytes of the weights (all, and those of the layers), and the kernels that ran, by base."""
    benches = {
        kind.name: Workbench(
            kind.directory, list(shapes.values()), device="cpu", kernels="auto", quantize=kind.quantize
        )
        for kind in kinds
    }
    memory = {
        name: {
            "weights": bench.decoder.weight_bytes,
            "layers": bench.decoder.weight_bytes - bench.table_bytes,
        }
        for name, bench in benches.items()
    }
    kernels = {name: bench.decoder.kernels for name, bench in benches.items()}
    return speeds(benches, shapes, repeat), memory, kernels


def show(
    speed: Mapping[str, Mapping[str, float]],
    memory: Mapping[str, Mapping[str, int]],
    quality: Mapping[str, Mapping[str, float]],
) -> str:
    """The figures as a table in Markdown; speeds and sizes beside their ratios to bf16."""
    names = list(memory)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for shape, own in speed.items():
        cells = [f"{own[name]:.1f} ({own[name] / own[PLAIN]:.2f}x)" for name in names]
        lines.append(f"| tok/s, {shape} | " + " | ".join(cells) + " |")
    for part in ("layers", "weights"):
        sizes = {name: memory[name][part] for name in names}
        cells = [f"{own / 2**20:.0f} ({own / sizes[PLAIN]:.2f}x)" for own in sizes.values()]
        lines.append(f"| MiB, {part} | " + " | ".join(cells) + " |")
    for key, form in (("top1", "{:.1%}"), ("kl", "{:.1e}")):
        cells = [form.format(quality[name][key]) if name in quality else "" for name in names]
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    *,
    base: Annotated[
        str, typer.Option(help="Base model: a directory, or a name `manylora pull` knows.")
    ] = "smollm2-135m",
    also: Annotated[
        list[str] | None, typer.Option(help="A checkpoint of it that is quantized already. May be repeated.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many steps.")] = 25,
    quality: Annotated[bool, typer.Option(help="Measure quality as well: takes minutes.")] = True,
) -> None:
    """Print a table, then one line of JSON, which is kept in bench/results."""
    kinds = bases(resolve_base(base), also or [])
    speed, memory, kernels = measure(kinds, SHAPES, repeat)
    rated = qualities(kinds) if quality else {}
    print(show(speed, memory, rated))
    setting = {**machine.setting(), "base": base, "threads": torch.get_num_threads(), "kernels": kernels}
    found = {"tokens_per_second": speed, "bytes": memory, "quality": rated}
    line = json.dumps({"bench": "quantized", **setting, **found})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-quantized")
    print(line)


if __name__ == "__main__":
    typer.run(main)
