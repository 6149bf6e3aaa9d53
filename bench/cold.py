"""What a request pays for an adapter that is on disk only, and what it costs those who are answered already.

Run as ``python -m bench.cold``. Adapters by the hundred are registered, and few fit on the device; the
memory tier is off, so that every adapter not on the device is read from disk.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from bench import machine, peers, report, systems
from bench.adapters import write_adapters
from bench.client import Exchange
from bench.prompts import english
from bench.run import RESULTS, resolve_base

_STREAMS = 4  # answered while adapters are loaded
_PROMPT_WORDS = 24


@dataclass(frozen=True, slots=True)
class ColdFigures:
    """Times in milliseconds."""

    registered: int
    resident: int  # that fit on the device
    start_seconds: float  # of the server, with all of them registered already
    warm_first_token: float  # median
    cold_first_token: float  # median
    cold_first_token_p90: float
    median_gap: float  # between tokens of the streams, while nothing is loaded
    longest_gap: float  # the same
    median_gap_loading: float  # while adapters are loaded one after the other
    longest_gap_loading: float


async def _ask(server: systems.RunningSystem, adapter: int, seed: str, tokens: int) -> Exchange:
    exchange = await server.send(english(_PROMPT_WORDS, seed), (adapter,), tokens)
    if exchange.error is not None:
        raise systems.SystemFailed(f"a{adapter}: {exchange.error}")
    return exchange


async def _first_tokens(server: systems.RunningSystem, adapters: Sequence[int], seed: str) -> list[float]:
    """Milliseconds to the first token, one request after the other."""
    found = []
    for number, adapter in enumerate(adapters):
        exchange = await _ask(server, adapter, f"{seed}-{number}", 2)
        assert exchange.first_token is not None
        found.append(1000 * exchange.first_token)
    return found


async def _gaps_beside(
    server: systems.RunningSystem, adapters: Sequence[int], tokens: int, seed: str
) -> list[float]:
    """Milliseconds between the tokens of a few streams; ``adapters`` are asked for meanwhile."""
    streams = [
        asyncio.create_task(_ask(server, number, f"{seed}-stream-{number}", tokens))
        for number in range(_STREAMS)
    ]
    await _first_tokens(server, adapters, seed)
    done = await asyncio.gather(*streams)
    return [1000 * gap for exchange in done for gap in exchange.gaps[1:]]


async def measure(
    server: systems.RunningSystem, registered: int, resident: int, start_seconds: float
) -> ColdFigures:
    """Measure a server with adapters a0, a1, … of which ``resident`` fit on the device."""
    hot = list(range(_STREAMS))
    cold = list(range(_STREAMS, registered))
    await _first_tokens(server, hot, "first")
    warm = await _first_tokens(server, hot * 12, "warm")
    cold_times = await _first_tokens(server, cold[:100], "cold")
    await _first_tokens(server, hot, "again")
    quiet = await _gaps_beside(server, hot * 12, 400, "quiet")
    loading = await _gaps_beside(server, cold[100:150], 400, "loading")
    return ColdFigures(
        registered=registered,
        resident=resident,
        start_seconds=start_seconds,
        warm_first_token=median(warm),
        cold_first_token=median(cold_times),
        cold_first_token_p90=report.percentile(cold_times, 0.9),
        median_gap=median(quiet),
        longest_gap=max(quiet),
        median_gap_loading=median(loading),
        longest_gap_loading=max(loading),
    )


async def _run(base: Path, registered: int, resident: int) -> ColdFigures:
    adapters = write_adapters(base, peers.cache() / "adapters", count=registered, ranks=[16], dtype="bf16")
    stored = (adapters[0] / "adapter_model.safetensors").stat().st_size
    loop, log = asyncio.get_running_loop(), peers.cache() / "logs" / "cold.log"
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        publishing = systems.manylora(base, adapters, Path(scratch), 32)
        (await systems.start(publishing, log)).stop()
        known = systems.manylora(base, (), Path(scratch), 32)
        room = ("--adapter-memory", str(resident * stored), "--adapter-cache-memory", "1")  # no adapter fits
        began = loop.time()
        server = await systems.start(replace(known, command=(*known.command, *room)), log)
        try:
            return await measure(server, registered, resident, loop.time() - began)
        finally:
            server.stop()


def main(
    *,
    base: Annotated[str, typer.Option(help="Base model.")] = "smollm2-135m",
    registered: Annotated[int, typer.Option(min=160, help="Adapters.")] = 300,
    resident: Annotated[int, typer.Option(min=8, help="How many fit on the device.")] = 20,
) -> None:
    """Measure cold adapters; prints one JSON line and keeps it in bench/results."""
    figures = asyncio.run(_run(resolve_base(base), registered, resident))
    line = json.dumps({"bench": "cold", **machine.setting(), "base": base, **asdict(figures)})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-cold")
    print(line)


if __name__ == "__main__":
    typer.run(main)
