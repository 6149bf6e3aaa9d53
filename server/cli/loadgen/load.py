"""Puts a workload on a server: closed loop (clients wait for answers) or open loop (Poisson arrivals)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter, process_time

from manylora.server.cli.loadgen.completion import Exchange
from manylora.server.cli.loadgen.generated_prompts import PromptShape
from manylora.server.cli.loadgen.workload import Workload

Send = Callable[[str, tuple[int, ...], int], Awaitable[Exchange]]  # (prompt, adapter indices, output tokens)


@dataclass(frozen=True, slots=True)
class Load:
    """How a workload is applied. With ``rate`` (requests a second) the loop is open, else closed."""

    workload: Workload
    shape: PromptShape
    output_tokens: int = 64
    rounds: int = 3  # requests a client
    rate: float | None = None


@dataclass(slots=True)
class Observed:
    """Every exchange of one run, its wall time and the CPU time this process spent, in seconds."""

    exchanges: list[Exchange] = field(default_factory=list)
    wall: float = 0.0
    client_cpu: float = 0.0


async def apply(load: Load, send: Send, seed: str) -> Observed:
    """Run a whole load once. Prompts and adapter choices depend on ``seed`` alone."""
    observed = Observed()
    start, cpu = perf_counter(), process_time()
    await (_closed(load, send, seed, observed) if load.rate is None else _open(load, send, seed, observed))
    observed.wall, observed.client_cpu = perf_counter() - start, process_time() - cpu
    return observed


async def _ask(load: Load, send: Send, seed: str, client: int, request: int) -> Exchange:
    prompt = load.shape.prompt(f"{seed}/{client}/{request}")
    members = load.workload.members(client, request, seed)
    return await send(prompt, members, load.output_tokens)


async def _closed(load: Load, send: Send, seed: str, observed: Observed) -> None:
    async def client(number: int) -> None:
        for request in range(load.rounds):
            observed.exchanges.append(await _ask(load, send, seed, number, request))

    async with asyncio.TaskGroup() as group:
        for number in range(load.workload.clients):
            group.create_task(client(number))


async def _open(load: Load, send: Send, seed: str, observed: Observed) -> None:
    async def one(number: int) -> None:
        client, request = number % load.workload.clients, number // load.workload.clients
        observed.exchanges.append(await _ask(load, send, seed, client, request))

    start = perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, due in zip(
            range(load.workload.clients * load.rounds), arrivals(load, seed), strict=False
        ):
            await asyncio.sleep(start + due - perf_counter())
            group.create_task(one(number))


def arrivals(load: Load, seed: str) -> Iterator[float]:
    """Seconds after the start at which requests arrive: a Poisson process of ``load.rate`` a second."""
    assert load.rate is not None
    rng = random.Random(f"{seed}/arrivals")
    due = 0.0
    for _ in count():
        due += rng.expovariate(load.rate)
        yield due
