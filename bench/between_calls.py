"""What a step takes besides its native calls: the time from the end of one to the start of the next.

Run as ``python -m bench.between_calls``: once in process, with an engine that is stepped by hand, and once in
a server under a load from a process of its own. Only steps count in which every stream computes one token.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Annotated, Any

import typer

from bench import machine, report
from bench.run import RESULTS, resolve_base
from manylora.server.api.app import create_app
from manylora.server.assembly import build_service
from manylora.server.cli.listening import listening
from manylora.server.cli.serve import StartUp, event_loop_factory, serve
from manylora.server.engine.engine import Engine
from manylora.server.engine.sequence import ResolvedMix, SamplingParams, Sequence
from manylora.server.options.settings import Settings
from manylora.server.service import Service
from manylora.server.threads import call_in_thread

_PROMPT = 30  # tokens


@dataclass
class Calls:
    """The native library of a decoder, with a clock at its two calls of a step. Times in seconds."""

    native: Any
    streams: int
    steps: list[float] = field(default_factory=list)  # of the forward call
    draws: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)  # the rest, up to the next forward call
    reads: list[float] = field(default_factory=list)  # of what was drawn, where it is read between two calls
    _began: float = 0.0  # the last forward call
    _inside: float = 0.0  # in native calls since
    _counts: bool = False  # whether that was a step of all streams

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)

    def manylora_step(self, engine: object, arguments: Any) -> int:
        began = perf_counter()
        if self._counts:
            self.between.append(began - self._began - self._inside)
        fault: int = self.native.manylora_step(engine, arguments)
        self._began, self._inside = began, perf_counter() - began
        self._counts = arguments.rows == arguments.sequences == self.streams
        if self._counts:
            self.steps.append(self._inside)
        return fault

    def manylora_draw(self, sampler: object, arguments: Any) -> int:
        began = perf_counter()
        fault: int = self.native.manylora_draw(sampler, arguments)
        self._inside += perf_counter() - began
        if self._counts:
            self.draws.append(perf_counter() - began)
        return fault

    def outside(self, work: Callable[[], object]) -> None:
        """Do what is no part of the time between two calls."""
        began = perf_counter()
        work()
        self.reads.append(perf_counter() - began)
        self._inside += self.reads[-1]

    def figures(self) -> Mapping[str, float]:
        """Medians and the 90th percentile of what lies between, milliseconds."""
        return {
            "steps": len(self.between),
            "step_ms": round(1e3 * median(self.steps), 3),
            "draw_ms": round(1e3 * median(self.draws), 3),
            "between_ms": round(1e3 * median(self.between), 3),
            "between_p90_ms": round(1e3 * quantiles(self.between, n=10)[-1], 3),
        }


def watched(engine: Engine, streams: int) -> Calls:
    """Put a clock at the native calls of an engine."""
    step: Any = engine.decoder._step  # type: ignore[attr-defined]
    calls = Calls(step._native, streams)
    step._native = step.draw._native = calls
    return calls


def by_hand(service: Service, streams: int, tokens: int) -> Mapping[str, float]:
    """Step the engine of a service that was not started. What a server's loop does beside it is left out."""
    calls, engine = watched(service.core, streams), service.core
    for i in range(streams):
        params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        engine.add(Sequence(i + 1, tuple(range(100 + i, 100 + i + _PROMPT)), params, ResolvedMix()))
    while engine.has_work:
        outcomes = engine.advance()
        calls.outside(lambda outcomes=outcomes: list(engine.read(outcomes)))  # type: ignore[misc]
    asyncio.run(service.stop())
    return {**calls.figures(), "read_ms": round(1e3 * median(calls.reads), 3)}


async def served(service: Service, streams: int, tokens: int) -> Mapping[str, float]:
    """The same in a server, with clients that read streams."""
    calls = watched(service.core, streams)
    with StartUp() as start_up, listening(service.config) as listener:
        ready = asyncio.Event()
        server = asyncio.ensure_future(serve(create_app(service), service.config, listener, None, ready.set))
        server.add_done_callback(lambda _: ready.set())
        await ready.wait()
        start_up.done()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        load = ("--workload", f"base@{streams}", "--prompt-tokens", str(_PROMPT), "--rounds", "1")
        command = (sys.executable, "-m", "manylora", "bench", "--url", url, "--json", *load)
        try:
            client = await asyncio.create_subprocess_exec(
                *command, "--output-tokens", str(tokens), stdout=asyncio.subprocess.DEVNULL
            )
            if await client.wait() != 0:
                raise SystemExit("manylora bench failed")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await server
    return calls.figures()


def with_service(base: Path, measure: Callable[[Service], Mapping[str, float]]) -> Mapping[str, float]:
    """Measure a service that is built for it."""
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as scratch:
        settings = Settings(
            model=str(base), port=0, data_dir=Path(scratch), adapter_memory=64 << 20, kv_cache_memory=1 << 30
        )
        return measure(call_in_thread(build_service, settings, base))


def in_server(streams: int, tokens: int) -> Callable[[Service], Mapping[str, float]]:
    """:func:`served`, for a service that is built for it."""

    def measure(service: Service) -> Mapping[str, float]:
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            return runner.run(served(service, streams, tokens))

    return measure


def main(
    *,
    base: Annotated[str, typer.Option(help="Base model.")] = "smollm2-135m",
    streams: Annotated[int, typer.Option(min=1, help="Answers at once.")] = 32,
    output_tokens: Annotated[int, typer.Option(min=20, help="Of every answer.")] = 200,
    switch_ms: Annotated[
        float, typer.Option(min=0.01, help="How long a thread keeps the interpreter from one that waits.")
    ] = 1e3 * sys.getswitchinterval(),
) -> None:
    """Measure; prints one JSON line and keeps it in bench/results."""
    sys.setswitchinterval(switch_ms / 1e3)
    path = resolve_base(base)
    figures = {
        "in_process": with_service(path, lambda service: by_hand(service, streams, output_tokens)),
        "server": with_service(path, in_server(streams, output_tokens)),
    }
    for name, found in figures.items():
        print(name, *(f"{key} {value}" for key, value in found.items()), sep="  ")
    setting = {
        **machine.setting(),
        "base": base,
        "streams": streams,
        "output_tokens": output_tokens,
        "switch_ms": switch_ms,
    }
    line = json.dumps({"bench": "between-calls", **setting, **figures})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-between-calls")
    print(line)


if __name__ == "__main__":
    typer.run(main)
