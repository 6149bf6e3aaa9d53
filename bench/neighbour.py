"""What a busy neighbour costs a step: other processes that never sleep, on the same cores.

    python -m bench.neighbour

A process that computes on every core and waits at barriers can lose far more than its share to one that
computes on a single core: whoever is displaced holds the others up for a time slice. In fair shares, n
neighbours on c cores leave c/(c + n) of the machine to a step on c threads: (c + n)/c is the fair cost.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median
from typing import Annotated

import torch
import typer

from bench import machine, report
from bench.run import RESULTS, resolve_base
from bench.steps import Shape, Workbench
from manylora.server.kernels.inputs import StepInputs

SHAPES = {
    "1": Shape(1),
    "8": Shape(8),
    "32": Shape(32),
    "32, all distinct": Shape(32, distinct=32),
    "prompt of 256": Shape(1, 256, rows=256),
}
_TURNS = 3  # with and without neighbours, in turn


@contextmanager
def neighbours(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes compute until the end."""
    spin = (sys.executable, "-c", "while True: pass")
    running = [subprocess.Popen(spin) for _ in range(count)]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(
    bench: Workbench, steps: Sequence[StepInputs], counts: Sequence[int], repeat: int
) -> list[list[float]]:
    """Median milliseconds of each step beside each number of neighbours."""
    found: list[list[list[float]]] = [[] for _ in counts]
    for _ in range(_TURNS):
        for own, count in zip(found, counts, strict=True):
            with neighbours(count):
                own.append(bench.seconds(steps, repeat=repeat))
    return [[1e3 * median(times) for times in zip(*own, strict=True)] for own in found]


def main(
    *,
    base: Annotated[
        str, typer.Option(help="Base model: a directory, or a name `manylora pull` knows.")
    ] = "smollm2-135m",
    kernels: Annotated[str, typer.Option(help="native or pytorch.")] = "native",
    most: Annotated[int, typer.Option(min=1, help="Neighbours at most.")] = 2,
    repeat: Annotated[int, typer.Option(min=1, help="Medians are of so many steps, three times.")] = 15,
) -> None:
    """Print a line a shape and one of JSON, which is kept in bench/results."""
    counts, shapes = list(range(most + 1)), list(SHAPES.values())
    bench = Workbench(resolve_base(base), shapes, device="cpu", kernels=kernels)
    found = measure(bench, [bench.inputs(shape) for shape in shapes], counts, repeat)
    cores = torch.get_num_threads()
    print(f"{'ms beside n busy processes':28}" + "".join(f"{n:>16}" for n in counts))
    for i, name in enumerate(SHAPES):
        cells = [f"{own[i]:.1f} ({own[i] / found[0][i]:.2f}x)" for own in found]
        print(f"{name:28}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"{'fair share':28}" + "".join(f"{(cores + n) / cores:>15.2f}x" for n in counts))
    steps = {name: [own[i] for own in found] for i, name in enumerate(SHAPES)}
    line = json.dumps(
        {"bench": "neighbour", **machine.setting(), "base": base, "kernels": kernels, "ms": steps}
    )
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-neighbour")
    print(line)


if __name__ == "__main__":
    typer.run(main)
