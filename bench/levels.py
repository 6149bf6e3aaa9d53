"""One step of a base by each instruction set the kernels can be compiled for and this CPU can run.

    python -m bench.levels

The levels take turns in one process. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Annotated

import torch
import typer

from bench.run import resolve_base
from bench.steps import Shape, Workbench
from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import usable_variants
from manylora.server.kernels.cpu.library import AHEAD_OF_TIME, cache_directory, find_library
from manylora.server.kernels.inputs import StepInputs
from manylora.server.model.decoders.fused import FusedDecoder

SHAPES = {
    "1": Shape(1),
    "8": Shape(8),
    "8, all distinct": Shape(8, distinct=8),
    "32": Shape(32),
    "32, all distinct": Shape(32, distinct=32),
    "prompt of 512": Shape(1, 512, rows=512),
}

Step = Callable[[StepInputs], torch.Tensor]


def steps_of(bench: Workbench, max_rows: int) -> dict[str, Step]:
    """The native step by name of the level, each with its own packed weights and KV cache."""
    assert isinstance(bench.decoder, FusedDecoder)
    where = (bench.decoder.weights, bench.pool, bench.blocks, max_rows, torch.get_num_threads())
    steps: dict[str, Step] = {}
    for variant in usable_variants():
        library = find_library((variant,), AHEAD_OF_TIME, cache_directory())
        steps[variant.name] = NativeStep(*where, library=library).step
    return steps


def seconds(step: Step, inputs: StepInputs) -> float:
    begin = perf_counter()
    step(inputs)
    return perf_counter() - begin


def measure(steps: Mapping[str, Step], inputs: Sequence[StepInputs], repeat: int) -> dict[str, list[float]]:
    """Median milliseconds of each of ``inputs`` by level, after one turn that is not counted."""
    turns = [
        {name: [seconds(step, one) for one in inputs] for name, step in steps.items()}
        for _ in range(1 + repeat)
    ][1:]
    return {
        name: [1e3 * median(own) for own in zip(*(turn[name] for turn in turns), strict=True)]
        for name in steps
    }


def main(
    *,
    base: Annotated[
        str, typer.Option(help="Base model: a directory, or a name `manylora pull` knows.")
    ] = "smollm2-135m",
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many steps.")] = 5,
) -> None:
    """Print a line a shape, then one line of JSON."""
    shapes = list(SHAPES.values())
    bench = Workbench(resolve_base(base), shapes, device="cpu", kernels="pytorch")
    steps = steps_of(bench, max(shape.batch * shape.rows for shape in shapes))
    found = measure(steps, [bench.inputs(shape) for shape in shapes], repeat)
    print(f"{'ms':20}" + "".join(f"{name:>14}" for name in found))
    for i, name in enumerate(SHAPES):
        print(f"{name:20}" + "".join(f"{own[i]:14.1f}" for own in found.values()))
    print(json.dumps({level: dict(zip(SHAPES, own, strict=True)) for level, own in found.items()}))


if __name__ == "__main__":
    typer.run(main)
