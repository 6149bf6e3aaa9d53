"""Ways to spread requests over 10 to 1,000 replicas, compared in a simulation.

    python -m bench.cluster --plot docs/images/cluster.svg

The cost of a step is the law that ``bench.scaling`` fitted to measured steps, put on paper for Llama-2-7B on
an H100. The same seed gives the same figures on any machine, busy or not. The last line printed is the result
as one line of JSON; it is also kept in ``bench/results``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bench import machine, report
from bench.cluster.adapter_memory import Hardware
from bench.cluster.law import on_paper
from bench.cluster.plot import draw
from bench.cluster.policies import POLICIES
from bench.cluster.study import Setting, by_size, needed
from bench.cluster.table import table
from bench.cluster.workload import Demand
from bench.run import RESULTS

LAW = RESULTS / "20261122-233908-scaling.json"
NAMES = tuple(POLICIES)


def main(
    *,
    sizes: Annotated[str, typer.Option(help="Numbers of replicas, with commas.")] = "10,30,100,300,1000",
    policies: Annotated[str, typer.Option(help="Which ones, with commas.")] = ",".join(NAMES),
    rate: Annotated[float, typer.Option(help="Requests a second and replica.")] = 20.0,
    adapters: Annotated[int, typer.Option(min=1, help="That there are.")] = 100_000,
    exponent: Annotated[float, typer.Option(help="Of Zipf's law.")] = 1.0,
    drift: Annotated[float, typer.Option(help="Seconds after which popular adapters change.")] = 5.0,
    seconds: Annotated[float, typer.Option(help="Simulated, the warm-up included.")] = 60.0,
    warm_up: Annotated[float, typer.Option(help="Seconds that do not count.")] = 30.0,
    needed_rate: Annotated[
        float, typer.Option(help="Requests a second to find replicas for; 0: none.")
    ] = 1000.0,
    most_wait: Annotated[float, typer.Option(help="Seconds to the first token, for 99 of 100.")] = 1.0,
    law: Annotated[Path, typer.Option(help="A kept result of bench.scaling.")] = LAW,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures, PNG or SVG.")] = None,
) -> None:
    """Compare policies; prints one JSON line last and keeps it in bench/results."""

    def told(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    chosen = policies.split(",")
    demand = Demand(rate, adapters, exponent, drift)
    setting = Setting(on_paper(law), Hardware(), demand, seconds, warm_up)
    rows = list(by_size(setting, [int(size) for size in sizes.split(",")], chosen, told)) if sizes else []
    found = list(needed(setting, needed_rate, most_wait, chosen, told)) if needed_rate else []
    line = json.dumps(
        {
            "bench": "cluster",
            **machine.setting(),
            "law": asdict(setting.law),
            "hardware": asdict(setting.hardware),
            "demand": asdict(demand),
            "seconds": seconds,
            "warm_up": warm_up,
            "rows": rows,
            "needed": found,
        }
    )
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-cluster")
    told(table(rows))
    if plot is not None:
        draw(rows, found, plot)
    print(line)


if __name__ == "__main__":
    typer.run(main)
