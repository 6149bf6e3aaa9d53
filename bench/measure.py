"""Several systems under several loads in one run, taken in turn, so that all meet the same machine."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from bench.systems import RunningSystem, System, start
from manylora.server.cli.loadgen.figures import Figures, medians, summarize
from manylora.server.cli.loadgen.load import Load, Observed, apply


@dataclass(frozen=True, slots=True)
class Plan:
    """Every load on every system that can serve it, ``repeat`` times."""

    loads: tuple[Load, ...]
    repeat: int
    seed: str
    logs: Path


async def measure(systems: Sequence[System], plan: Plan, console: Console) -> list[Figures]:
    """Medians over the repetitions, a row for each load and system, in the order given.

    Before the first repetition each pair is warmed up with one request a client. While one system is
    measured the others are stopped by a signal, so that they use no CPU.

    SIGTERM ends it like Ctrl-C: the systems are stopped first.

    Raises:
        SystemFailed: a system did not start, or ended.
    """
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    runs: defaultdict[tuple[int, int], list[Figures]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        running = [await _start(system, plan, stack, console) for system in systems]
        pairs = [
            (i, j)
            for i, load in enumerate(plan.loads)
            for j, server in enumerate(running)
            if load.workload.kind in server.system.kinds
        ]
        for i, j in pairs:
            await _observe(running[j], replace(plan.loads[i], rounds=1, rate=None), f"{plan.seed}/warm-up")
        for repetition in range(plan.repeat):
            for i, j in pairs:
                # Of its own for each load: a prompt that another load sent is in the systems' prefix caches.
                observed = await _observe(running[j], plan.loads[i], f"{plan.seed}/{repetition}/{i}")
                name = plan.loads[i].workload.name
                runs[i, j].append(summarize(running[j].system.name, name, observed))
                _tell(runs[i, j][-1], observed, console)
    return [medians(runs[pair]) for pair in pairs]


async def _start(system: System, plan: Plan, stack: AsyncExitStack, console: Console) -> RunningSystem:
    console.print(f"starting {system.name}", markup=False)
    server = await start(system, plan.logs / f"{system.name}.log")
    stack.callback(server.stop)
    server.pause()
    return server


async def _observe(server: RunningSystem, load: Load, seed: str) -> Observed:
    server.resume()
    try:
        server.check_alive()
        return await apply(load, server.send, seed)
    finally:
        server.pause()


def _tell(figures: Figures, observed: Observed, console: Console) -> None:
    rate = figures.output_tokens_per_second
    console.print(f"{figures.workload} {figures.system}: {rate:.1f} tok/s", markup=False, highlight=False)
    errors = {exchange.error for exchange in observed.exchanges if exchange.error is not None}
    for error in sorted(errors)[:3]:
        console.print(f"    {figures.errors} failed: {error}", style="red", markup=False)
