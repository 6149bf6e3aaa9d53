"""What a request pays for an adapter that is on disk only, and what it costs those who are answered already.

Run as ``python -m bench.cold``. Adapters by the hundred are registered, and few fit on the device; the
memory tier is off, so that every adapter not on the device is read from disk.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, TypeVar
from urllib.request import Request, urlopen

import typer

from bench import machine, peers, report, systems
from bench.adapters import write_adapters
from bench.run import RESULTS, resolve_base
from manylora.server.cli.loadgen.completion import Exchange
from manylora.server.cli.loadgen.figures import percentile
from manylora.server.cli.loadgen.generated_prompts import english

_STREAMS = 4  # answered while adapters are loaded
_STREAM_TOKENS = 600
_PROMPT_WORDS = 24
_ROUNDS = 5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gaps:
    """Milliseconds between the tokens of the streams while something else goes on, over all rounds."""

    median: float
    p99: float
    longest: float  # the median of the rounds' longest: a machine that stops for a moment spoils few rounds
    longest_by_round: list[float]


@dataclass(frozen=True, slots=True)
class ColdFigures:
    """Times in milliseconds."""

    registered: int
    resident: int  # that fit on the device
    start_seconds: float  # of the server, with all of them registered already
    warm_first_token: float  # median
    cold_first_token: float  # median
    cold_first_token_p90: float
    load: float  # median of loads by POST …/prefetch beside the streams, answer included
    gaps_alone: Gaps
    gaps_loading: Gaps  # while adapters are loaded by POST …/prefetch, one after the other
    gaps_warm: Gaps  # while requests for adapters on the device arrive, one after the other
    gaps_cold: Gaps  # while requests for adapters on disk do


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


async def _loads(server: systems.RunningSystem, adapters: Sequence[int]) -> list[float]:
    """Milliseconds that each takes to be loaded, one after the other."""
    found = []
    for adapter in adapters:
        began = perf_counter()
        await asyncio.to_thread(_prefetch, f"{server.url}/v1/adapters/a{adapter}/prefetch")
        found.append(1000 * (perf_counter() - began))
    return found


def _prefetch(url: str) -> None:
    with urlopen(Request(url, method="POST"), timeout=60) as answer:
        if not json.load(answer)["residency"]["device"]:
            raise systems.SystemFailed(f"{url}: there was no room for it")


async def _beside(
    server: systems.RunningSystem, work: Callable[[], Awaitable[T]], seed: str
) -> tuple[list[float], T]:
    """The gaps of a few streams from when ``work`` begins until it ends, in ms, and what it returns."""
    streams = [
        asyncio.create_task(_ask(server, number, f"{seed}-stream-{number}", _STREAM_TOKENS))
        for number in range(_STREAMS)
    ]
    await asyncio.sleep(0.5)  # until they are past their prompts
    began = perf_counter()
    result = await work()
    ended = perf_counter()
    if any(stream.done() for stream in streams):
        raise systems.SystemFailed("the streams ended before what was to be measured beside them")
    gaps = [
        1000 * (later - earlier)
        for exchange in await asyncio.gather(*streams)
        for earlier, later in pairwise(exchange.chunks)
        if began < earlier and later < ended
    ]
    return gaps, result


def _summary(rounds: Sequence[Sequence[float]]) -> Gaps:
    gaps, longest = [gap for one in rounds for gap in one], [max(one) for one in rounds]
    return Gaps(median(gaps), percentile(gaps, 0.99), median(longest), longest)


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
    # Far more are loaded in turn than fit, so that none is still there when a later round asks for it.
    works: dict[str, Callable[[], Awaitable[list[float]]]] = {
        "alone": lambda: asyncio.sleep(2, []),
        "loading": lambda: _loads(server, cold[:50]),
        "warm": lambda: _first_tokens(server, hot * 12, "beside"),
        "cold": lambda: _first_tokens(server, cold[50:100], "beside cold"),
    }
    gaps: dict[str, list[list[float]]] = {name: [] for name in works}
    loads = []
    for number in range(_ROUNDS):
        for name, work in works.items():
            found, times = await _beside(server, work, f"{name} {number}")
            gaps[name].append(found)
            if name == "loading":
                loads += times
    return ColdFigures(
        registered=registered,
        resident=resident,
        start_seconds=start_seconds,
        warm_first_token=median(warm),
        cold_first_token=median(cold_times),
        cold_first_token_p90=percentile(cold_times, 0.9),
        load=median(loads),
        gaps_alone=_summary(gaps["alone"]),
        gaps_loading=_summary(gaps["loading"]),
        gaps_warm=_summary(gaps["warm"]),
        gaps_cold=_summary(gaps["cold"]),
    )


async def _run(base: Path, registered: int, resident: int) -> ColdFigures:
    adapters = write_adapters(base, peers.cache() / "adapters", count=registered, ranks=[16], dtype="bf16")
    stored = (adapters[0] / "adapter_model.safetensors").stat().st_size
    loop, log = asyncio.get_running_loop(), peers.cache() / "logs" / "cold.log"
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        publishing = systems.manylora(base, adapters, Path(scratch), 32)
        (await systems.start(publishing, log)).stop()
        os.sync()  # writing 6 GB behind the scenes takes the cores and the disk from what is measured
        known = systems.manylora(base, (), Path(scratch), 32)
        room = ("--adapter-memory", str(resident * stored), "--adapter-cache-memory", "0")
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
