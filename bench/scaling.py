"""What a step costs by batch, context, rank, distinct adapters and tokens of prompts, beside the roofline.

    python -m bench.scaling --plot docs/scaling.png

Steps of many shapes are timed in one process, the time is fitted as a sum of what has to be moved and
computed, and each part is compared with what the machine can do. The same law on paper says what a 7B base
would take on GPUs. With ``--beside 1`` another process computes all the while. The last line printed is the
result as one line of JSON; it is also kept in ``bench/results``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench import machine, report
from bench.run import RESULTS, resolve_base
from bench.scaling_plot import draw
from bench.steps import Machine, Shape, Work, Workbench, measure_machine
from manylora.server.cli.loadgen.figures_table import wide_console

# Bandwidth and dense bf16 arithmetic by NVIDIA's data sheets.
DATASHEETS = {
    "A100 80GB SXM": Machine(2.039e12, 312e12),
    "H100 SXM": Machine(3.35e12, 989e12),
}
TERMS = ("weights", "keys and values", "adapters", "attention of prompts", "a row", "a sequence", "a step")
OVERHEADS = 3  # of them, the last: counts, which are this machine's
_BASE = [Shape(b) for b in (1, 2, 4, 8, 16, 32, 64)]
_PROMPTS = (32, 64, 128, 256, 512)
SWEEPS: dict[str, list[Shape]] = {
    "batch": _BASE,
    "batch, one adapter": [replace(shape, distinct=1) for shape in _BASE],
    "batch, all distinct": [replace(shape, distinct=shape.batch) for shape in _BASE],
    "context": [Shape(16, context) for context in (64, 256, 512, 1024, 2048)],
    "rank": [Shape(16, rank=rank, distinct=16) for rank in (4, 8, 16, 32, 64)],
    "distinct": [Shape(32, distinct=distinct) for distinct in (1, 2, 4, 8, 16, 32)],
    "prompt": [Shape(1, length, rows=length) for length in _PROMPTS],
    "prompt, an adapter": [Shape(1, length, rows=length, distinct=1) for length in _PROMPTS],
    "later piece of a prompt": [Shape(1, context, rows=256) for context in (1024, 2048)],
}


def features(work: Work, machine: Machine) -> list[float]:
    """The seconds each of :data:`TERMS` takes at the machine's best; the last three are counts."""
    weights = max(work.weight_bytes / machine.bytes_per_second, work.weight_flops / machine.flops_per_second)
    adapters = work.adapter_bytes / machine.bytes_per_second + work.adapter_flops / machine.flops_per_second
    return [
        weights,
        work.kv_bytes / machine.bytes_per_second,
        adapters,
        work.attention_flops / machine.flops_per_second,
        float(work.rows),
        float(work.sequences),
        1.0,
    ]


def fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Coefficients, none negative, with the least squared relative error."""
    times = np.asarray(seconds)
    matrix = np.asarray(rows) / times[:, None]
    free = list(range(matrix.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(matrix[:, free], np.ones_like(times), rcond=None)
        if (found >= 0).all():
            break
        free.pop(int(found.argmin()))
    coefficients = np.zeros(matrix.shape[1])
    coefficients[free] = found
    return [float(value) for value in coefficients]


def predicted(row: Sequence[float], coefficients: Sequence[float]) -> float:
    """Seconds that the fitted law gives a step."""
    return float(np.dot(row, coefficients))


def measure(bench: Workbench, best: Machine, repeat: int) -> dict[str, Any]:
    """Time every shape of every sweep and fit the law to all of them."""
    shapes = list(dict.fromkeys(shape for sweep in SWEEPS.values() for shape in sweep))
    seconds = dict(zip(shapes, bench.seconds([bench.inputs(s) for s in shapes], repeat=repeat), strict=True))
    rows = {shape: features(bench.work(shape), best) for shape in shapes}
    coefficients = fit(list(rows.values()), list(seconds.values()))
    points = [
        {
            **asdict(shape),
            "seconds": seconds[shape],
            "fitted": predicted(rows[shape], coefficients),
            "roofline": bench.work(shape).least_seconds(best),
        }
        for shape in shapes
    ]
    law = dict(zip(TERMS, coefficients, strict=True))
    return {"law": law, "points": points, "on_paper": on_paper(coefficients)}


def on_paper(coefficients: Sequence[float]) -> list[dict[str, Any]]:
    """What the law says of Llama-2-7B in bf16 with rank-16 adapters, had GPUs the efficiency measured here.

    Overheads of a row, a sequence and a step are left out: they are this machine's.
    """
    rows = []
    for gpu, best in DATASHEETS.items():
        for batch in (1, 8, 32, 128):
            both = [_llama_7b(batch, context=512, distinct=distinct) for distinct in (0, batch)]
            base, adapted = (
                predicted(features(work, best)[:-OVERHEADS], coefficients[:-OVERHEADS]) for work in both
            )
            rows.append({"gpu": gpu, "batch": batch, "base": base, "all_distinct": adapted})
    return rows


def _llama_7b(batch: int, context: int, distinct: int) -> Work:
    layers, hidden, intermediate, vocabulary, rank = 32, 4096, 11008, 32000, 16
    inner = layers * (4 * hidden * hidden + 3 * hidden * intermediate)
    head = vocabulary * hidden
    adapter = layers * rank * (4 * 2 * hidden + 3 * (hidden + intermediate))
    return Work(
        weight_bytes=2.0 * (inner + head),
        weight_flops=2.0 * (inner + head) * batch,
        kv_bytes=2.0 * 2 * layers * hidden * context * batch,
        adapter_bytes=2.0 * adapter * distinct,
        adapter_flops=2.0 * adapter * batch if distinct else 0.0,
        rows=batch,
        sequences=batch,
    )


def _compute(base: Path, shapes: Sequence[Shape], device: str, kernels: str, asker: Connection) -> None:
    bench = Workbench(base, shapes, device=device, kernels=kernels)
    steps = [bench.inputs(shape) for shape in shapes]
    draw_step = Random(0)
    asker.send("ready")
    while not asker.poll():  # until who asked has gone
        bench.time(draw_step.choice(steps))


@contextmanager
def others(count: int, base: Path, shapes: Sequence[Shape], *, device: str, kernels: str) -> Iterator[None]:
    """So many processes with a base of their own compute steps of these shapes meanwhile.

    Raises:
        SystemExit: one has ended before it began.
    """
    context = get_context("spawn")
    with ExitStack() as stack:
        for _ in range(count):
            end, other_end = context.Pipe()
            given = base, shapes, device, kernels, other_end
            process = context.Process(target=_compute, args=given, daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(end.close)
            other_end.close()  # so that its end is heard here
            try:
                end.recv()
            except EOFError:
                raise SystemExit("a process that should compute beside this one has ended") from None
        yield


def show(found: dict[str, Any], best: Machine, out: Console) -> None:
    """The law, the points and the prediction for people."""
    gigabytes, gigaflops = best.bytes_per_second / 1e9, best.flops_per_second / 1e9
    out.print(f"measured: {gigabytes:.1f} GB/s, {gigaflops:.0f} GFLOP/s in bf16", highlight=False)
    law = list(found["law"].items())
    for term, value in law[:-OVERHEADS]:
        out.print(f"{term}: {value:.2f} times the machine's best", highlight=False)
    for term, value in law[-OVERHEADS:]:
        out.print(f"{term}: {1e6 * value:.0f} µs", highlight=False)
    grid = Table(
        "batch", "new tokens", "context", "rank", "distinct", "ms", "fitted", "roofline", "of roofline"
    )
    for p in found["points"]:
        shape = [str(p[key]) for key in ("batch", "rows", "context", "rank", "distinct")]
        ms = [f"{1000 * p[key]:.1f}" for key in ("seconds", "fitted", "roofline")]
        grid.add_row(*shape, *ms, f"{p['seconds'] / p['roofline']:.2f}")
    out.print(grid)
    paper = Table("on paper", "batch", "base, ms", "all distinct, ms")
    for row in found["on_paper"]:
        paper.add_row(
            row["gpu"], str(row["batch"]), *(f"{1000 * row[key]:.1f}" for key in ("base", "all_distinct"))
        )
    out.print(paper)


def main(
    *,
    base: Annotated[
        str, typer.Option(help="Base model: a directory, or a name `manylora pull` knows.")
    ] = "smollm2-135m",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    kernels: Annotated[str, typer.Option(help="auto, native or pytorch.")] = "auto",
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many steps.")] = 25,
    beside: Annotated[
        int, typer.Option(min=0, help="Processes that compute meanwhile, as replicas on one machine do.")
    ] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures, PNG or SVG.")] = None,
) -> None:
    """Measure how a step scales; prints one JSON line last and keeps it in bench/results."""
    shapes = [shape for sweep in SWEEPS.values() for shape in sweep]
    bench = Workbench(resolve_base(base), shapes, device=device, kernels=kernels)
    best = measure_machine(bench.device)
    with others(beside, resolve_base(base), shapes, device=device, kernels=kernels):
        found = measure(bench, best, repeat)
    show(found, best, wide_console(stderr=True))
    setting = {**machine.setting(), "base": base, "kernels": bench.decoder.kernels, **asdict(best)}
    setting["beside"] = beside
    line = json.dumps({"bench": "scaling", **setting, **found})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-scaling")
    if plot is not None:
        draw(found["points"], SWEEPS, plot)
    print(line)


if __name__ == "__main__":
    typer.run(main)
