"""The simulation beside two real replicas: the same requests, and how far their figures are apart.

    OMP_NUM_THREADS=1 python -m bench.scaling
    OMP_NUM_THREADS=1 python -m bench.scaling --beside 1  # the two replicas share the machine
    python -m bench.cluster.validation --law …-scaling.json --beside …-scaling.json

Run it alone on the machine, in an environment with ``manylora[ray]``. Two replicas of one thread each serve
adapters by Zipf's law, at random times; the simulation is given the same requests, the laws of a replica
alone and beside another, and two things that are measured first: what a request takes besides its steps, and
what bringing an adapter in takes. The last line printed is the result as one line of JSON; it is also kept in
``bench/results``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import count
from math import inf
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Annotated, Any

import httpx
import torch
import typer
from prometheus_client.parser import text_string_to_metric_families

from bench import machine, report
from bench.adapters import write_adapter
from bench.cluster.adapter_memory import Hardware
from bench.cluster.law import Law, measured
from bench.cluster.policies import Affinity
from bench.cluster.ray_overhead import system
from bench.cluster.simulation import Outcome, Simulation
from bench.cluster.workload import Demand, Request, Workload
from bench.run import RESULTS, resolve_base
from bench.steps import prompt_pairs
from bench.systems import RunningSystem, start
from manylora.server.cli.loadgen.completion import Endpoint, Exchange, complete, greedy

REPLICAS, SEQUENCES, BATCH_TOKENS, RANK = 2, 32, 512, 16
WITHIN = 0.15
_FIRST_WORDS = count()  # of a prompt, a number


class Recorded:
    """Requests that are known already, as a workload."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def requests(self, seconds: float) -> Sequence[Request]:
        """Those before ``seconds``."""
        return [request for request in self._requests if request.at <= seconds]

    def rank_of(self, adapter: str) -> int:  # noqa: ARG002
        """All have the same."""
        return RANK


async def publish(http: httpx.AsyncClient, base: Path, place: Path, count: int) -> None:
    """``count`` adapters, all different: equal ones would share their memory."""
    for number in range(count):
        write_adapter(base, place / f"{number}", rank=RANK, dtype=torch.bfloat16, seed=number)
        body = {"lora_name": f"a{number}", "lora_path": str(place / f"{number}")}
        (await http.post("/v1/load_lora_adapter", json=body)).raise_for_status()


async def tier_hits(http: httpx.AsyncClient) -> dict[str, float]:
    """Adapters that requests needed, by where they were."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        if family.name == "manylora_adapter_tier_hits":
            for sample in family.samples:
                found[sample.labels["tier"]] = found.get(sample.labels["tier"], 0.0) + sample.value
    return found


async def ask(endpoint: Endpoint, request: Request) -> Exchange:
    """One request, its prompt about so many tokens long and its answer exactly.

    No two prompts begin alike: the simulation knows no prefix cache.
    """
    first = next(_FIRST_WORDS)
    words = " ".join(str(number % 997) for number in range(first, first + max(1, request.prompt // 2)))
    return await complete(endpoint, greedy({"model": request.adapter}, words, request.answer), timeout=300)


async def drive(endpoint: Endpoint, requests: Sequence[Request]) -> list[Exchange]:
    """Send each at its time."""
    began = perf_counter()

    async def one(request: Request) -> Exchange:
        await asyncio.sleep(max(0.0, request.at - (perf_counter() - began)))
        return await ask(endpoint, request)

    return await asyncio.gather(*map(one, requests))


async def calibrate(endpoint: Endpoint, law: Law, adapters: int) -> tuple[float, float]:
    """On idle replicas: seconds of a first token that no step takes, and those of bringing an adapter in."""

    async def beside_steps(adapter: int) -> float:
        exchange = await ask(endpoint, Request(0.0, f"a{adapter}", RANK, 32, 4))
        rows = exchange.prompt_tokens
        pairs = prompt_pairs(rows, rows)
        steps = law.seconds(rows, 1, 0.0, float(RANK * rows), float(RANK), pairs=pairs)
        return (exchange.first_token or 0.0) - steps

    seen = [await beside_steps(0) for _ in range(12)]
    besides = max(0.0, median(seen[2:]))
    first_uses = [await beside_steps(1 + number) for number in range(min(12, adapters - 1))]
    loading = max(0.0, median(first_uses) - besides) if first_uses else 0.0
    return besides, loading


def simulated(
    laws: tuple[Law, Law], hardware: Hardware, requests: Sequence[Request], seconds: float, warm_up: float
) -> Outcome:
    """What the simulation says of the same requests."""
    alone, beside = laws
    policy = Affinity(REPLICAS, 1, SEQUENCES)
    simulation = Simulation(alone, hardware, policy, REPLICAS, beside=beside)
    return simulation.run(Recorded(requests), seconds, warm_up)


async def compare(
    server: RunningSystem,
    base: Path,
    place: Path,
    *,
    laws: tuple[Law, Law],
    hardware: Hardware,
    demand: Demand,
    seconds: float,
) -> dict[str, Any]:
    """Both, and how far they are apart."""
    endpoint = Endpoint.of(server.url)
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        await publish(http, base, place / "adapters", demand.adapters)
        besides, loading = await calibrate(endpoint, laws[0], demand.adapters)
        requests = [
            replace(request, rank=RANK, answer=min(request.answer, 200))
            for request in Workload(demand, 1).requests(seconds)
        ]
        warm_up = seconds / 3
        warm = [request for request in requests if request.at < warm_up]
        counted = [replace(request, at=request.at - warm_up) for request in requests if request.at >= warm_up]
        await drive(endpoint, warm)
        before = await tier_hits(http)
        exchanges = await drive(endpoint, counted)
        after = await tier_hits(http)
    faults = [exchange.error for exchange in exchanges if exchange.error is not None]
    if faults:
        raise SystemExit(f"{len(faults)} requests failed: {faults[0]}")
    prompts = mean(e.prompt_tokens / r.prompt for e, r in zip(exchanges, counted, strict=True))
    told = [replace(request, prompt=max(1, round(request.prompt * prompts))) for request in requests]
    hardware = replace(hardware, store_seconds=loading)
    expected = simulated(laws, hardware, told, seconds, warm_up)
    firsts = sorted(exchange.first_token or 0.0 for exchange in exchanges)
    hits = {tier: after[tier] - before[tier] for tier in after}
    real = {
        "hit_rate": hits["device"] / sum(hits.values()),
        "first_token_p50": median(firsts),
        "first_token_p99": firsts[int(0.99 * (len(firsts) - 1))],
    }
    guess = {
        "hit_rate": expected.hit_rate,
        "first_token_p50": expected.first_token_p50 + besides,
        "first_token_p99": expected.first_token_p99 + besides,
    }
    apart = {key: guess[key] / real[key] - 1 for key in real}
    return {
        "besides": besides,
        "loading": loading,
        "requests": len(counted),
        "tiers": hits,
        "real": real,
        "simulated": guess,
        "apart": apart,
    }


async def run(
    base: Path, laws: tuple[Law, Law], demand: Demand, seconds: float, memory: int
) -> dict[str, Any]:
    """Start two replicas, compare, and stop them."""
    hardware = Hardware(
        adapter_memory=float(memory),
        host_memory=0.0,  # bringing one in takes as long as was measured, every time
        host_speed=inf,
        store_speed=inf,
        max_num_seqs=SEQUENCES,
        max_batch_tokens=BATCH_TOKENS,
    )
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        place = Path(folder)
        options = ["--ray", "--replicas", str(REPLICAS), "--replica-cpus", "1", "--adapter-root", folder]
        options += ["--adapter-memory", str(memory), "--adapter-cache-memory", str(memory * 8)]
        options += ["--max-num-seqs", str(SEQUENCES), "--max-batch-tokens", str(BATCH_TOKENS)]
        server = await start(system("ray", base, place / "data", 1, *options), place / "ray.log")
        try:
            return await compare(
                server, base, place, laws=laws, hardware=hardware, demand=demand, seconds=seconds
            )
        finally:
            server.stop()


def main(
    *,
    law: Annotated[Path, typer.Option(help="A result of bench.scaling on this machine, one thread of two.")],
    beside: Annotated[
        Path, typer.Option(help="One that was measured with --beside 1: the replicas share the machine.")
    ],
    base: Annotated[str, typer.Option(help="Base model, the one of the laws.")] = "smollm2-135m",
    rate: Annotated[float, typer.Option(help="Requests a second in all.")] = 2.0,
    adapters: Annotated[int, typer.Option(min=1, help="Names.")] = 100,
    memory: Annotated[int, typer.Option(help="Bytes for adapters of a replica.")] = 400_000_000,
    seconds: Annotated[float, typer.Option(help="Of requests, a third of them to warm up.")] = 600.0,
) -> None:
    """Compare the simulation with two real replicas; prints one JSON line last and keeps it."""
    demand = Demand(rate, adapters, drift=1e9, prompt=128.0, answer=32.0, ranks=(RANK,), rank_weights=(1.0,))
    laws = measured(law), measured(beside)
    found = asyncio.run(run(resolve_base(base), laws, demand, seconds, memory))
    told = {
        "bench": "cluster-validation",
        **machine.setting(),
        "base": base,
        "demand": asdict(demand),
        **found,
    }
    line = json.dumps(told)
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-cluster-validation")
    for key, part in found["apart"].items():
        print(f"{key}: {100 * part:+.0f}% (at most {100 * WITHIN:.0f})", file=sys.stderr)
    print(line)


if __name__ == "__main__":
    typer.run(main)
