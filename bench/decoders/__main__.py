"""Decoders beside each other on this machine, in turns; nothing else may run meanwhile.

    python -m bench.decoders generic                   # fused against generic, two families
    python -m bench.decoders kv-cache                  # keys and values in bf16 against int8, long contexts

The last line printed is the result as one line of JSON, which is kept in bench/results.
"""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import machine, report
from bench.decoders.models import MODELS, write_model
from bench.decoders.turns import show, speeds, summary
from bench.run import RESULTS, resolve_base
from bench.steps import Shape, Workbench

STREAMS = {
    "1 stream": Shape(1),
    "8 streams": Shape(8),
    "8 streams, 8 adapters": Shape(8, distinct=8),
    "a prompt of 512": Shape(1, 512, rows=512),
}

Repeat = Annotated[int, typer.Option(min=1, help="Repetitions; figures are their medians.")]
Seconds = Annotated[float, typer.Option(min=0, help="Of one decoder at one shape in one repetition.")]

app = typer.Typer(add_completion=False, help="Decoders beside each other, in turns.")


@app.command()
def generic(*, repeat: Repeat = 3, seconds: Seconds = 2.0) -> None:
    """The fused decoder in its native kernels against the generic one, on models of random weights."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in MODELS:
            directory = Path(scratch) / name
            parameters = write_model(directory, name)
            shapes = list(STREAMS.values())
            benches = {
                "fused": Workbench(directory, shapes, device="cpu", kernels="native"),
                "generic": Workbench(directory, shapes, device="cpu", kernels="auto", generic=True),
            }
            found = summary(speeds(benches, STREAMS, repeat=repeat, seconds=seconds))
            level = benches["fused"].decoder.kernels
            show(name, found)
            rows[name] = {"parameters": parameters, "kernels": level, "shapes": found}
    _keep("generic-decoder", rows)


@app.command("kv-cache")
def kv_cache(
    *,
    base: Annotated[
        str, typer.Option(help="Base model: a directory, or a name `manylora pull` knows.")
    ] = "smollm2-135m",
    streams: Annotated[int, typer.Option(min=1, help="That decode together.")] = 32,
    context: Annotated[int, typer.Option(min=16, help="Tokens that each of them has in the cache.")] = 2000,
    repeat: Repeat = 3,
    seconds: Seconds = 2.0,
) -> None:
    """Keys and values in 8 bits against bf16: decoding with long contexts, and a prompt's first token."""
    shapes = {
        f"{streams} streams of {context}": Shape(streams, context),
        "a prompt of 1,000": Shape(1, 1000, rows=1000),
    }
    directory = resolve_base(base)
    benches = {
        name: Workbench(directory, list(shapes.values()), device="cpu", kernels="native", coded_cache=coded)
        for name, coded in (("int8", True), ("bf16", False))
    }
    found = summary(speeds(benches, shapes, repeat=repeat, seconds=seconds))
    show("tokens a second", found)
    first = {name: 1e6 / one["tokens_per_second"] for name, one in found["a prompt of 1,000"].items()}
    print("first token of 1,000, ms: " + ", ".join(f"{name} {ms:.0f}" for name, ms in first.items()))
    kernels = benches["bf16"].decoder.kernels
    _keep("kv-cache-speed", {Path(base).name: {"kernels": kernels, "shapes": found}})


def _keep(bench: str, rows: dict[str, Any]) -> None:
    line = json.dumps({"bench": bench, **machine.setting(), "rows": rows}, separators=(",", ":"))
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{bench}")
    print(line)


if __name__ == "__main__":
    app()
