"""What Ray Serve costs: the first token and each further one, beside the same server without it.

    python -m bench.cluster.ray_overhead

Run it alone on the machine, in an environment with ``manylora[ray]``: ``make ray-test`` makes build/ray.
Both are up at once and take turns, one stream at a time, so that the machine is the same for both. The last
line printed is the result as one line of JSON; it is also kept in ``bench/results``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from bench import machine, report
from bench.run import RESULTS, resolve_base
from bench.systems import BASE, RunningSystem, System, start
from manylora.server.cli.loadgen.completion import Exchange

FIRST_TOKEN, TOKEN = 0.015, 0.001  # seconds of overhead that are promised


def system(name: str, base: Path, data: Path, cores: int, *options: str) -> System:
    """A server of ``base``, with or without Ray."""
    command = (sys.executable, "-m", "manylora.server.cli.main", "serve", "--port", "{port}")
    settings = (
        "--model",
        str(base),
        "--served-model-name",
        BASE,
        "--data-dir",
        str(data),
        "--training",
        "off",
    )
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": str(cores)}
    return System(name, (*command, *settings, *options), ready_path="/ready", environment=environment)


async def measure(bare: RunningSystem, on_ray: RunningSystem, rounds: int, tokens: int) -> dict[str, object]:
    """Medians of both, and of the differences of neighbours."""
    found: dict[str, list[Exchange]] = {"bare": [], "ray": []}
    for number in range(rounds + 3):
        order = [("bare", bare), ("ray", on_ray)]
        for name, server in order if number % 2 else order[::-1]:
            exchange = await server.send(f"The number {number} is", (), tokens)
            if exchange.error is not None:
                raise SystemExit(f"{name}: {exchange.error}")
            if number >= 3:  # the first ones warm up
                found[name].append(exchange)
    firsts = {name: [e.first_token or 0.0 for e in each] for name, each in found.items()}
    gaps = {
        name: [(e.end - e.chunks[0]) / (e.output_tokens - 1) for e in each] for name, each in found.items()
    }
    result: dict[str, object] = {"rounds": rounds, "tokens": tokens}
    for name in found:
        result[name] = {"first_token": median(firsts[name]), "token": median(gaps[name])}
    for key, seen in (("first_token_overhead", firsts), ("token_overhead", gaps)):
        result[key] = median(two - one for one, two in zip(seen["bare"], seen["ray"], strict=True))
    return result


async def run(base: Path, rounds: int, tokens: int, cores: int) -> dict[str, object]:
    """Start both, measure, and stop both."""
    with tempfile.TemporaryDirectory(prefix="ray-overhead-") as folder:
        place = Path(folder)
        bare = await start(system("bare", base, place / "bare", cores), place / "bare.log")
        try:
            options = ("--ray", "--replicas", "1", "--replica-cpus", str(cores))
            on_ray = await start(system("ray", base, place / "ray", cores, *options), place / "ray.log")
            try:
                return await measure(bare, on_ray, rounds, tokens)
            finally:
                on_ray.stop()
        finally:
            bare.stop()


def main(
    *,
    base: Annotated[
        str, typer.Option(help="Base model: a directory, or a name `manylora pull` knows.")
    ] = "smollm2-135m",
    rounds: Annotated[int, typer.Option(min=1, help="Streams of each.")] = 40,
    tokens: Annotated[int, typer.Option(min=2, help="Of each answer.")] = 64,
    cores: Annotated[int, typer.Option(min=1, help="Threads of each server.")] = 1,
) -> None:
    """Measure what Ray Serve adds to a token; prints one JSON line last and keeps it in bench/results."""
    found = asyncio.run(run(resolve_base(base), rounds, tokens, cores))
    line = json.dumps({"bench": "ray-overhead", **machine.setting(), "base": base, "cores": cores, **found})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-ray-overhead")
    for key, most in (("first_token_overhead", FIRST_TOKEN), ("token_overhead", TOKEN)):
        seconds = float(str(found[key]))
        print(f"{key}: {1000 * seconds:.2f} ms (at most {1000 * most:.0f})", file=sys.stderr)
    print(line)


if __name__ == "__main__":
    typer.run(main)
