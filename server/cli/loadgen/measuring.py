"""Measures a running server under several loads, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import time_ns

from rich.console import Console
from rich.progress import MofNCompleteColumn

from manylora.adapters.progress_bars import progress_bars
from manylora.server.cli.loadgen.completion import Endpoint, Exchange, complete, greedy
from manylora.server.cli.loadgen.figures import Figures, summarize
from manylora.server.cli.loadgen.load import Load, Send, apply
from manylora.server.cli.loadgen.workload import model_string

_PATIENCE = 900.0  # seconds, for one answer


@dataclass(frozen=True)
class Target:
    """A server, and the names under which it serves its base model and adapters."""

    url: str
    key: str | None
    base: str
    adapters: Sequence[str]


async def measure(target: Target, loads: Sequence[Load]) -> list[Figures]:
    """Figures of each load; errors are told on stderr.

    Each client of a load begins with a request that is not counted.
    """
    out = Console(stderr=True)
    seed = str(time_ns())  # gives prompts that no earlier run has left in the server's cache
    rows: list[Figures] = []
    for load in loads:
        workload = load.workload
        with _bar(workload.name, workload.clients * (1 + load.rounds), out) as done:
            send = _sender(target, done)
            await apply(replace(load, rounds=1, rate=None), send, f"{seed}/warm-up")
            observed = await apply(load, send, seed)
        rows.append(summarize(target.url, workload.name, observed))
        for error in sorted({exchange.error for exchange in observed.exchanges if exchange.error})[:3]:
            out.print(f"{workload.name}: {error}", style="red", markup=False)
    return rows


def _sender(target: Target, done: Callable[[], None]) -> Send:
    endpoint = Endpoint.of(target.url, target.key)

    async def send(prompt: str, members: tuple[int, ...], output_tokens: int) -> Exchange:
        model = model_string([target.adapters[member] for member in members], target.base)
        exchange = await complete(endpoint, greedy({"model": model}, prompt, output_tokens), _PATIENCE)
        done()
        return exchange

    return send


@contextmanager
def _bar(workload: str, requests: int, out: Console) -> Iterator[Callable[[], None]]:
    """Counts requests; says nothing where ``out`` is no terminal."""
    with progress_bars(MofNCompleteColumn(), console=out, passing=True) as progress:
        task = progress.add_task(workload, total=requests)
        yield lambda: progress.advance(task)
