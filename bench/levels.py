"""One step of a base by each instruction set the kernels can be compiled for and this CPU can run.

    python -m bench.levels
    python -m bench.levels --level amx --level avx512-bf16 --repeat 15

The levels take turns in one process, so that what slows the machine down slows all of them. Beside the times
stand the ratios to the first level: medians of each turn's own. Nothing else may run meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Annotated

import torch
import typer

from bench.run import resolve_base
from bench.steps import Shape, Workbench
from manylora.server.cache_directory import cache_directory
from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import usable_variants
from manylora.server.kernels.cpu.library import AHEAD_OF_TIME, find_library
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


def steps_of(bench: Workbench, max_rows: int, levels: Sequence[str] = ()) -> dict[str, Step]:
    """The native step by name of the level (all if none is asked for), each with its own weights and cache.

    Raises:
        ValueError: this machine can't run a level.
    """
    usable = {variant.name: variant for variant in usable_variants()}
    if missing := [level for level in levels if level not in usable]:
        raise ValueError(f"this machine can't run {', '.join(missing)}, it can run {', '.join(usable)}")
    assert isinstance(bench.decoder, FusedDecoder)
    where = (bench.decoder.weights, bench.pool, bench.blocks, max_rows, torch.get_num_threads())
    steps: dict[str, Step] = {}
    for name in levels or usable:
        library = find_library((usable[name],), AHEAD_OF_TIME, cache_directory("kernels"))
        steps[name] = NativeStep(*where, library=library).step
    return steps


def seconds(step: Step, inputs: StepInputs) -> float:
    """The median of five: in a server a step follows its like, not another level's step on other memory."""
    return median(_once(step, inputs) for _ in range(5))


def _once(step: Step, inputs: StepInputs) -> float:
    begin = perf_counter()
    step(inputs)
    return perf_counter() - begin


@dataclass(frozen=True)
class Found:
    """What was measured of one level."""

    ms: list[float]  # medians, one a shape
    ratio: list[float]  # its time over the first level's in the same turn, medians, one a shape


def measure(steps: Mapping[str, Step], inputs: Sequence[StepInputs], repeat: int) -> dict[str, Found]:
    """The levels' times for each of ``inputs``, after one turn that is not counted."""
    turns = [
        [{name: 1e3 * seconds(step, one) for name, step in steps.items()} for one in inputs]
        for _ in range(1 + repeat)
    ][1:]
    first = next(iter(steps))
    return {
        name: Found(
            [median(one[name] for one in own) for own in zip(*turns, strict=True)],
            [median(one[name] / one[first] for one in own) for own in zip(*turns, strict=True)],
        )
        for name in steps
    }


def main(
    *,
    base: Annotated[
        str, typer.Option(help="Base model: a directory, or a name `manylora pull` knows.")
    ] = "smollm2-135m",
    level: Annotated[
        list[str] | None, typer.Option(help="A level to measure, repeatable; all of this machine by default.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many turns.")] = 5,
) -> None:
    """Print a line a shape, then one line of JSON."""
    shapes = list(SHAPES.values())
    bench = Workbench(resolve_base(base), shapes, device="cpu", kernels="pytorch")
    steps = steps_of(bench, max(shape.batch * shape.rows for shape in shapes), level or ())
    found = measure(steps, [bench.inputs(shape) for shape in shapes], repeat)
    print(f"{'ms (times the first)':20}" + "".join(f"{name:>18}" for name in found))
    for i, name in enumerate(SHAPES):
        print(f"{name:20}" + "".join(f"{own.ms[i]:9.1f} ({own.ratio[i]:5.2f}x)" for own in found.values()))
    by_shape = {
        name: {shape: {"ms": ms, "ratio": ratio} for shape, ms, ratio in zip(SHAPES, *own, strict=True)}
        for name, own in ((name, (one.ms, one.ratio)) for name, one in found.items())
    }
    print(json.dumps(by_shape))


if __name__ == "__main__":
    typer.run(main)
