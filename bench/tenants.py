"""What tenants cost, and whether they get what they are promised: throughput, shares, and waiting.

Run as ``python -m bench.tenants``, alone on the machine: it takes about five minutes. Two servers of the same
base are up at a time: one that knows no tenants and serves in order of arrival, and one with tenants, limits
and fair scheduling. They take turns at the same load of 32 streams. Then tenants of weights 1, 2 and 4 send
more than can be served, the first ten times as much; and one that sends little waits for its first token,
alone and beside a flood.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import ExitStack, aclosing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import httpx
import typer

from bench import machine, report
from bench.run import RESULTS, resolve_base

WEIGHTS = {"one": 1.0, "two": 2.0, "four": 4.0}
STREAMS = 32
ANSWER = 64  # tokens
WAITS = 40  # first tokens that are measured, alone and beside a flood
ADMIN = secrets.token_urlsafe(24)
_PROMPTS = [f"Tell me about the number {number} in a few words." for number in range(97)]
_GENEROUS = {"tokens_per_minute": 10**9, "monthly_tokens": 10**12, "max_concurrent_requests": 10**6}


@contextmanager
def server(base: Path, *options: str) -> Iterator[str]:
    """A server's URL, from when it is ready until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="manylora-bench-") as data:
        serve = ("serve", "--model", str(base), "--served-model-name", "base", "--port", str(port))
        command = (sys.executable, "-m", "manylora", *serve, "--data-dir", data, "--admin-api-key", ADMIN)
        with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL) as process:
            try:
                url = f"http://127.0.0.1:{port}"
                _wait(process, url)
                yield url
            finally:
                process.terminate()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    began = perf_counter()
    while perf_counter() - began < 600:
        if process.poll() is not None:
            raise SystemExit("a server has ended")
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    raise SystemExit("a server is not ready after ten minutes")


def make_tenants(url: str) -> dict[str, str]:
    """A key for each tenant."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {ADMIN}"}) as http:
        keys = {}
        for name, weight in {**WEIGHTS, "light": 1.0}.items():
            body = {"name": name, "weight": weight, "limits": _GENEROUS}
            http.post("/v1/tenants", json=body).raise_for_status()
            keys[name] = http.post(f"/v1/tenants/{name}/keys").raise_for_status().json()["key"]
    return keys


async def tokens_of(
    http: httpx.AsyncClient, key: str, prompt: str, length: int
) -> AsyncGenerator[float, None]:
    """The time of each token of one stream."""
    body = {"model": "base", "prompt": prompt, "max_tokens": length, "stream": True, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}"}
    async with http.stream("POST", "/v1/completions", json=body, headers=headers) as told:
        told.raise_for_status()
        async for line in told.aiter_lines():
            if line.startswith("data: {"):
                yield perf_counter()


def client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url, timeout=600, limits=httpx.Limits(max_connections=None, max_keepalive_connections=None)
    )


async def throughput(url: str, keys: list[str], rounds: int) -> float:
    """Tokens a second of 32 streams, which the keys share."""
    async with client(url) as http:

        async def one(index: int) -> int:
            count = 0
            for turn in range(rounds):
                prompt = _PROMPTS[(index + turn * STREAMS) % len(_PROMPTS)]
                async for _ in tokens_of(http, keys[index % len(keys)], prompt, ANSWER):
                    count += 1
            return count

        began = perf_counter()
        counts = await asyncio.gather(*(one(index) for index in range(STREAMS)))
        return sum(counts) / (perf_counter() - began)


async def flooding(http: httpx.AsyncClient, key: str, streams: int, count: list[float]) -> None:
    """Keep so many streams of a tenant there until this is cancelled; ``count`` takes when tokens came."""

    async def one(index: int) -> None:
        while True:
            async for now in tokens_of(http, key, _PROMPTS[index % len(_PROMPTS)], ANSWER):
                count.append(now)

    await asyncio.gather(*(one(index) for index in range(streams)))


async def stop(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel floods; raises what ended one of them before."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


async def shares(url: str, keys: Mapping[str, str], seconds: float) -> dict[str, float]:
    """Tokens a second of each tenant by its weight, relative to all of them; 1 is what it is promised."""
    counts: dict[str, list[float]] = {name: [] for name in WEIGHTS}
    async with client(url) as http:
        streams = {name: 10 * STREAMS if name == "one" else 2 * STREAMS for name in WEIGHTS}
        tasks = [
            asyncio.create_task(flooding(http, keys[name], streams[name], counts[name])) for name in WEIGHTS
        ]
        async with asyncio.timeout(60 + seconds):
            while not all(counts.values()) and not any(task.done() for task in tasks):
                await asyncio.sleep(0.1)
        began = perf_counter() + seconds / 5  # once all are backlogged
        await asyncio.sleep(seconds)
        await stop(tasks)
    got = {name: sum(now > began for now in counts[name]) / weight for name, weight in WEIGHTS.items()}
    mean = statistics.mean(got.values())
    return {name: round(value / mean, 3) for name, value in got.items()}


async def first_tokens(url: str, keys: Mapping[str, str], count: int, *, flood: bool) -> list[float]:
    """Seconds until the first token, of one request after the other of the light tenant."""
    waited: list[float] = []
    async with client(url) as http:
        seen: list[float] = []
        tasks = [asyncio.create_task(flooding(http, keys["one"], 10 * STREAMS, seen))] if flood else []
        while flood and len(seen) < 4 * STREAMS and not tasks[0].done():
            await asyncio.sleep(0.1)
        for index in range(count):
            began = perf_counter()
            async with aclosing(tokens_of(http, keys["light"], _PROMPTS[-1 - index % 90], 2)) as tokens:
                waited.append(await anext(tokens) - began)
                async for _ in tokens:  # to its end, or it would take a place beside the next
                    pass
        await stop(tasks)
    return waited


def p99(values: list[float]) -> float:
    """The value that 99 in 100 are below; of fewer than that, the largest."""
    return sorted(values)[min(len(values) - 1, round(0.99 * len(values)))]


async def measure(plain: str, fair: str, *, rounds: int, repeats: int, seconds: float) -> dict[str, Any]:
    """All figures."""
    keys = make_tenants(fair)
    without: list[float] = []
    with_tenants: list[float] = []
    for _ in range(repeats):
        without.append(await throughput(plain, [ADMIN], rounds))
        with_tenants.append(await throughput(fair, [keys[name] for name in WEIGHTS], rounds))
    alone = await first_tokens(fair, keys, WAITS, flood=False)
    beside = await first_tokens(fair, keys, WAITS, flood=True)
    return {
        "streams": STREAMS,
        "tokens_per_second_first_come_first_served": round(max(without), 1),
        "tokens_per_second_with_tenants": round(max(with_tenants), 1),
        "ratio": round(max(with_tenants) / max(without), 4),
        "shares_by_weight": await shares(fair, keys, seconds),
        "first_token_p50_alone": round(statistics.median(alone), 4),
        "first_token_p50_beside_a_flood": round(statistics.median(beside), 4),
        "first_token_p99_alone": round(p99(alone), 4),
        "first_token_p99_beside_a_flood": round(p99(beside), 4),
    }


def main(
    base: Annotated[str, typer.Option(help="The base model.")] = "smollm2-135m",
    rounds: Annotated[int, typer.Option(help="Answers of each stream, each time.")] = 2,
    repeats: Annotated[int, typer.Option(help="Times that either server has its turn.")] = 4,
    seconds: Annotated[float, typer.Option(help="For which tenants compete.")] = 40.0,
) -> None:
    """Measure; prints one JSON line and keeps it in bench/results."""
    directory = resolve_base(base)
    many = ("--max-waiting", "4096", "--max-num-seqs", str(STREAMS))  # so that all have to wait
    with ExitStack() as running:
        plain = running.enter_context(server(directory, *many, "--scheduling", "fcfs"))
        fair = running.enter_context(server(directory, *many))
        told = asyncio.run(measure(plain, fair, rounds=rounds, repeats=repeats, seconds=seconds))
    setting = {"base": base, "rounds": rounds, "repeats": repeats, "seconds": seconds}
    line = json.dumps({"bench": "tenants", **machine.setting(), **setting, **told})
    report.save(line, RESULTS, f"{datetime.now(UTC):%Y%m%d-%H%M%S}-tenants")
    typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
