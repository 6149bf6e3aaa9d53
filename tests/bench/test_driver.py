"""The benchmark's driver against a tiny streaming server on a real port, and its arithmetic by table."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench.measure import Plan, measure
from bench.systems import (
    ALL_KINDS,
    RunningSystem,
    System,
    SystemFailed,
    parse_system,
    start,
)
from manylora.server.cli.loadgen.figures import summarize
from manylora.server.cli.loadgen.generated_prompts import PromptShape
from manylora.server.cli.loadgen.load import Load, apply, arrivals
from manylora.server.cli.loadgen.workload import parse_workload

Answer = Callable[[dict[str, Any]], list[bytes]]  # request body -> pieces of the response, sent one by one

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(**content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def streamed(body: dict[str, Any]) -> list[bytes]:
    """A well-behaved answer: one event a token, then usage, then [DONE]."""
    count = body["max_tokens"]
    tokens = [event(choices=[{"text": f"t{i}"}], usage=None) for i in range(count)]
    last = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": count})
    return [OK, *(chunk(token) for token in tokens), chunk(last), chunk(b"data: [DONE]\n\n"), chunk(b"")]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers every POST with ``answer``; gives its URL and the bodies it gets."""
    bodies: list[dict[str, Any]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        bodies.append(json.loads(await reader.readexactly(length)))
        for piece in answer(bodies[-1]):
            writer.write(piece)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}", bodies


def target(url: str) -> RunningSystem:
    return RunningSystem(System("test", url=url, kinds=ALL_KINDS), url, None)


async def test_a_stream_is_timed_and_counted() -> None:
    async with serving(streamed) as (url, bodies):
        exchange = await target(url).send("hello", (3,), 5)
    assert exchange.error is None
    assert (exchange.prompt_tokens, exchange.output_tokens, len(exchange.chunks)) == (7, 5, 5)
    assert exchange.first_token is not None
    assert 0 < exchange.first_token <= exchange.latency
    assert len(exchange.gaps) == 4
    (body,) = bodies
    assert body["model"] == "a3"
    assert body["max_tokens"] == 5
    assert (body["temperature"], body["ignore_eos"], body["stream"]) == (0, True, True)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([b"HTTP/1.1 404 Not Found\r\n\r\n", b'{"error": "no such model"}'], "HTTP 404: .*no such model"),
        ([OK, chunk(event(error={"message": "engine died"}))], "engine died"),
        ([OK, chunk(event(choices=[{"text": "x"}]))], "without usage"),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], "HTTP None|not an HTTP"),
        ([], "HTTP None"),
    ],
)
async def test_faults_are_told_and_not_raised(answer: list[bytes], words: str) -> None:
    async with serving(lambda _: answer) as (url, _):
        exchange = await target(url).send("hello", (), 5)
    assert exchange.error is not None
    assert re.search(words, exchange.error)


async def test_nobody_listening_is_an_error_of_the_exchange() -> None:
    async with serving(streamed) as (url, _):
        pass
    exchange = await target(url).send("hello", (), 5)
    assert exchange.error is not None
    assert "can't connect" in exchange.error


async def test_a_closed_loop_keeps_every_client_busy_and_prompts_apart() -> None:
    load = Load(parse_workload("distinct:3@6"), PromptShape(40), output_tokens=4, rounds=2)
    async with serving(streamed) as (url, bodies):
        observed = await apply(load, target(url).send, "seed")
    assert len(observed.exchanges) == 12
    assert Counter(body["model"] for body in bodies) == {"a0": 4, "a1": 4, "a2": 4}
    assert len({body["prompt"][:20] for body in bodies}) == 12
    figures = summarize("test", load.workload.name, observed)
    assert figures.errors == 0
    assert figures.output_tokens_per_second == pytest.approx(48 / observed.wall)
    assert figures.output_tokens == 4


async def test_an_open_loop_sends_all_requests() -> None:
    load = Load(parse_workload("base@2"), PromptShape(40), output_tokens=1, rounds=3, rate=10_000.0)
    async with serving(streamed) as (url, bodies):
        observed = await apply(load, target(url).send, "seed")
    assert len(observed.exchanges) == len(bodies) == 6


def test_arrivals_are_poisson_and_repeatable() -> None:
    load = Load(parse_workload("base@1"), PromptShape(), rate=50.0)
    first = [due for due, _ in zip(arrivals(load, "s"), range(2000), strict=False)]
    assert first == [due for due, _ in zip(arrivals(load, "s"), range(2000), strict=False)]
    gaps = np.diff([0.0, *first])
    assert np.mean(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert np.std(gaps) == pytest.approx(1 / 50, rel=0.1)  # of an exponential: as large as the mean


async def test_systems_take_turns_and_skip_what_they_cannot_serve(tmp_path: Path) -> None:
    loads = tuple(Load(parse_workload(text), PromptShape(40), 2, 1) for text in ("base@2", "mix:2@2"))
    async with serving(streamed) as (url, bodies):
        systems = [System("one", url=url, kinds=ALL_KINDS), System("two", url=url)]
        rows = await measure(systems, Plan(loads, 2, "seed", tmp_path), Console(quiet=True))
    assert [(row.workload, row.system) for row in rows] == [
        ("base@2", "one"),
        ("base@2", "two"),
        ("mix:2@2", "one"),
    ]
    assert all(row.requests == 4 and row.errors == 0 for row in rows)
    assert len(bodies) == 3 * 2 * (1 + 2)  # one warm-up
    prompts = {body["prompt"] for body in bodies}
    assert len(prompts) == 2 + 2 * 2 * 2, "the same for every system, others for each load and repetition"


async def test_a_system_is_started_paused_and_stopped(tmp_path: Path) -> None:
    command = "test={} -m http.server {{port}} --bind 127.0.0.1 --directory {}"
    system = parse_system(command.format(sys.executable, tmp_path))
    (tmp_path / "health").write_text("ok")
    running = await start(system, tmp_path / "log")
    try:
        running.pause()
        running.resume()
        running.check_alive()
        exchange = await running.send("hello", (), 1)
        assert exchange.error is not None
        assert "HTTP 501" in exchange.error
    finally:
        running.stop()
    with pytest.raises(SystemFailed, match="ended with status"):
        running.check_alive()


async def test_a_system_that_ends_at_once_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemFailed, match="broken ended with status 3"):
        await start(System("broken", (sys.executable, "-c", "exit(3)")), tmp_path / "log")


async def test_sigterm_stops_what_was_started(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    code = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    silent = System("silent", (sys.executable, "-c", code))
    plan = Plan((Load(parse_workload("base"), PromptShape(40), 1, 1),), 1, "seed", tmp_path)
    task = asyncio.create_task(measure([silent], plan, Console(quiet=True)))
    while not (marker.exists() and marker.read_text()):
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)
