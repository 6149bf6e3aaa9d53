"""What streaming costs: processor time of the event loop's thread for each token, and where it goes.

Run as ``python -m bench.event_loop``. The server runs in this process, as ``manylora serve`` runs it; a load
comes from a process of its own, twice: first the thread's processor time is taken, then the same under
Python's profiler. What the metrics cost the engine's thread is timed by itself.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import pstats
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, thread_time
from typing import Annotated

import typer

from bench import machine, report
from bench.run import RESULTS, resolve_base
from manylora.server.api.app import create_app
from manylora.server.assembly import build_service
from manylora.server.cli.listening import listening
from manylora.server.cli.serve import StartUp, event_loop_factory, serve
from manylora.server.metrics.metrics import Metrics
from manylora.server.options.settings import Settings
from manylora.server.service import Service
from manylora.server.threads import call_in_thread

_BASE = "(base)"  # the metrics' name of it
_GOAL_TOKENS = 800  # a second
_METRIC_STEPS = 2000
_PARTS = {  # the first that a function's file name contains
    "/server/api/": "formatting: server/api",
    "/server/engine/": "delivery: server/engine",
    "/sse_starlette/": "sse_starlette",
    "/anyio/": "anyio",
    "/uvicorn/": "uvicorn",
    "/starlette/": "starlette, fastapi",
    "/fastapi/": "starlette, fastapi",
    "/server/": "server, the rest",
}
_NATIVE = "native code: loop, sockets, JSON"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one run under load."""

    tokens: int
    seconds: float
    loop_seconds: float  # processor time of the loop's thread

    @property
    def microseconds(self) -> float:
        """Of the loop's thread, a token."""
        return 1e6 * self.loop_seconds / self.tokens


async def under_load(service: Service, url: str, load: tuple[str, ...]) -> Cost:
    """What a whole run of ``manylora bench`` costs the thread this is called in."""
    command = (sys.executable, "-m", "manylora", "bench", "--url", url, "--json", *load)
    tokens = service.metrics.requests.traffic(_BASE).generated_tokens
    began, spent = perf_counter(), thread_time()
    client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    if await client.wait() != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    spent, seconds = thread_time() - spent, perf_counter() - began
    return Cost(service.metrics.requests.traffic(_BASE).generated_tokens - tokens, seconds, spent)


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """The share of the profiled time that each part took itself, largest first."""
    seconds: Counter[str] = Counter()
    for (file, _, _), entry in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        name = next((part for place, part in _PARTS.items() if place in file), "Python's own library")
        seconds[_NATIVE if file == "~" else name] += entry[2]
    total = sum(seconds.values())
    return {name: round(own / total, 3) for name, own in seconds.most_common()}


def metrics_microseconds(streams: int) -> float:
    """What counting one token costs, steps of ``streams`` tokens, as the engine does it."""
    metrics, began = Metrics(), thread_time()
    for _ in range(_METRIC_STEPS):
        for _ in range(streams):
            metrics.requests.inter_token(_BASE, 0.03)
            metrics.requests.generated_tokens(_BASE, 1)
        metrics.steps.record(
            batch_tokens=streams, batch_sequences=streams, distinct_adapters=0, seconds=0.03,
        )  # fmt: skip
    return 1e6 * (thread_time() - began) / (_METRIC_STEPS * streams)


async def _measure(service: Service, url: str, load: tuple[str, ...]) -> tuple[Cost, dict[str, float]]:
    plain = await under_load(service, url, load)
    with cProfile.Profile() as profile:
        await under_load(service, url, load)
    return plain, shares(profile)


def measured(base: Path, load: tuple[str, ...]) -> tuple[Cost, dict[str, float]]:
    """Serve ``base`` in this thread for as long as it takes to measure."""
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        settings = Settings(
            model=str(base), port=0, data_dir=Path(scratch), adapter_memory=64 << 20, kv_cache_memory=1 << 30
        )
        service = call_in_thread(build_service, settings, base)
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            return runner.run(_serve_and_measure(service, load))


async def _serve_and_measure(service: Service, load: tuple[str, ...]) -> tuple[Cost, dict[str, float]]:
    with StartUp() as start_up, listening(service.config) as listener:
        ready = asyncio.Event()
        server = asyncio.ensure_future(serve(create_app(service), service.config, listener, None, ready.set))
        server.add_done_callback(lambda _: ready.set())
        await ready.wait()
        start_up.done()
        try:
            return await _measure(service, f"http://127.0.0.1:{listener.getsockname()[1]}", load)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await server


def summary(cost: Cost, metrics: float) -> Mapping[str, float]:
    """Microseconds a token, and what they come to at the rate the goal names, in cores."""
    return {
        "loop_microseconds": round(cost.microseconds, 1),
        "metrics_microseconds": round(metrics, 1),
        "cores_at_800_tokens_a_second": round(_GOAL_TOKENS * (cost.microseconds + metrics) / 1e6, 3),
    }


def main(
    *,
    base: Annotated[str, typer.Option(help="Base model.")] = "smollm2-135m",
    streams: Annotated[int, typer.Option(min=1, help="Clients that read streams.")] = 32,
    output_tokens: Annotated[int, typer.Option(min=1, help="Of every answer.")] = 200,
) -> None:
    """Measure; prints one JSON line and keeps it in bench/results."""
    load = ("--workload", f"base@{streams}", "--prompt-tokens", "30", "--rounds", "1")
    cost, profile = measured(resolve_base(base), (*load, "--output-tokens", str(output_tokens)))
    figures = {**asdict(cost), **summary(cost, metrics_microseconds(streams)), "profile": profile}
    for name, share in profile.items():
        print(f"{name:36}{share:6.1%}")
    setting = {**machine.setting(), "base": base, "streams": streams, "output_tokens": output_tokens}
    line = json.dumps({"bench": "event-loop", **setting, **figures})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-event-loop")
    print(line)


if __name__ == "__main__":
    typer.run(main)
