"""Decoders that take turns at the same steps in one process, so that all meet the same machine."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from time import perf_counter

from bench.steps import Shape, Workbench

Speeds = dict[str, dict[str, list[float]]]  # tokens a second by shape and decoder, one a repetition


def speeds(
    benches: Mapping[str, Workbench], shapes: Mapping[str, Shape], *, repeat: int, seconds: float
) -> Speeds:
    """Each decoder runs each step again and again for ``seconds``, at least twice, ``repeat`` times over.

    One step of each is not counted, before the first repetition.
    """
    found: Speeds = {name: {own: [] for own in benches} for name in shapes}
    for name, shape in shapes.items():
        inputs = {own: bench.inputs(shape) for own, bench in benches.items()}
        for own, bench in benches.items():
            bench.time(inputs[own])
        for _ in range(repeat):
            for own, bench in benches.items():
                times: list[float] = []
                begin = perf_counter()
                while len(times) < 2 or perf_counter() - begin < seconds:
                    times.append(bench.time(inputs[own]))
                found[name][own].append(shape.batch * shape.rows / median(times))
    return found


def summary(found: Speeds) -> dict[str, dict[str, dict[str, float]]]:
    """By shape and decoder: tokens a second, and times the last decoder's; medians of the repetitions."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for shape, by_decoder in found.items():
        last = list(by_decoder.values())[-1]
        result[shape] = {
            name: {
                "tokens_per_second": round(median(own), 1),
                "ratio": round(median(a / b for a, b in zip(own, last, strict=True)), 3),
            }
            for name, own in by_decoder.items()
        }
    return result


def show(title: str, rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """A line a shape: tokens a second of each decoder and how many times the last one's."""
    names = next(iter(rows.values()))
    print(f"{title:24}" + "".join(f"{name:>24}" for name in names))
    for shape, own in rows.items():
        cells = (f"{one['tokens_per_second']:14.1f} ({one['ratio']:6.2f}x)" for one in own.values())
        print(f"{shape:24}" + "".join(cells))
