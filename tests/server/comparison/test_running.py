"""Comparisons beside other traffic: progress, clients that leave, replaced adapters, little memory."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from manylora.server.api.http.limits import MAX_COMPARISONS
from tests.support.raw_requests import connect
from tests.support.running_server import Running, serving, tiny_service
from tests.support.served_adapters import ADAPTERS, MESSAGES, compare

pytestmark = pytest.mark.slow

LONG = "".join(chr(97 + i * 7 % 26) for i in range(400))


def events(server: Running, body: dict[str, Any]) -> list[dict[str, Any]]:
    with server.http() as http, http.stream("POST", "/v1/compare", json=body) as answer:
        assert answer.status_code == 200
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_stream_tells_progress_and_ends_with_the_result(server: Running) -> None:
    body = {"targets": ["tiny", "alpha"], "prompt": ["One", "Two"], "max_tokens": 30}
    *progress, result = events(server, {**body, "stream": True})
    assert progress
    assert {event["object"] for event in progress} == {"comparison.progress"}
    assert {event["stage"] for event in progress} == {"answers", "scores"}
    done = [(event["case"], event["stage"] == "scores", event["scored_positions"]) for event in progress]
    assert done == sorted(done)
    assert progress[-1]["scored_positions"] == progress[-1]["positions"] > 0
    whole = compare(server, "tiny", "alpha", prompt=["One", "Two"], max_tokens=30)
    assert result["object"] == "comparison"
    for one, other in zip(result["cases"], whole["cases"], strict=True):
        assert one["reference"] == other["reference"]
        assert one["pairs"][0]["kl"] == pytest.approx(other["pairs"][0]["kl"], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reference", [None, LONG])
def test_a_client_that_leaves_frees_everything(
    slow_server: Running, stream: bool, reference: str | None
) -> None:
    """While the targets answer, and while the reference is scored."""
    body: dict[str, Any] = {"targets": ["tiny", "alpha", "beta*0.5+gamma"], "messages": MESSAGES}
    body |= {"stream": stream, "ignore_eos": True, "max_tokens": 400 if reference is None else 0}
    if reference is not None:
        body["reference"] = reference
    for _ in range(3):
        connection = connect(slow_server, "/v1/compare", body)
        slow_server.call(_until_computing(slow_server, scores=reference is not None))
        assert slow_server.references > 0
        connection.close()
        slow_server.wait_until_idle()


async def _until_computing(server: Running, *, scores: bool) -> None:
    while not any(
        (s.next_logits is not None) == scores and s.num_computed_tokens
        for s in server.service.core.scheduler.running
    ):
        await asyncio.sleep(0)


def test_streams_beside_it_are_unchanged(slow_server: Running) -> None:
    body = {"model": "alpha", "prompt": "stay", "max_tokens": 150, "temperature": 0, "ignore_eos": True}
    with slow_server.http() as http:
        alone = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    connections = [connect(slow_server, "/v1/completions", {**body, "cache_salt": str(i)}) for i in range(3)]
    result = compare(slow_server, "tiny", "alpha", "beta", reference=LONG, max_tokens=20)
    assert result["summary"][1]["positions"] == len(LONG)
    for connection in connections:
        assert _json(connection)["choices"][0]["text"] == alone


def _json(connection: socket.socket) -> dict[str, Any]:
    """The body of an answer that gives its length."""
    head, body = b"", b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    head, _, body = head.partition(b"\r\n\r\n")
    (length,) = (line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < int(length):
        body += connection.recv(65536)
    connection.close()
    found: dict[str, Any] = json.loads(body)
    return found


def test_an_adapter_removed_meanwhile_is_compared_to_the_end(slow_server: Running, adapters: Path) -> None:
    slow_server.call(slow_server.service.adapters.admin.load("brief", adapters / "alpha"))
    expected = compare(slow_server, "tiny", "brief", reference=LONG, max_tokens=0)
    body = {"targets": ["tiny", "brief"], "messages": MESSAGES, "reference": LONG, "max_tokens": 0}
    connection = connect(slow_server, "/v1/compare", body)
    slow_server.call(_until_computing(slow_server, scores=True))
    assert slow_server.references > 0
    slow_server.call(slow_server.service.adapters.admin.load("brief", adapters / "beta", replace=True))
    found = _json(connection)
    slow_server.call(slow_server.service.adapters.deletions.delete("brief"))
    kl = expected["cases"][0]["pairs"][0]["kl"]
    assert found["cases"][0]["pairs"][0]["kl"] == pytest.approx(kl, rel=1e-3, abs=1e-7)


def test_more_targets_than_fit_the_adapter_memory_together(
    tmp_path: Path, model: Path, adapters: Path
) -> None:
    """One at a time has a lease; nobody waits for another's room while holding some."""
    options: dict[str, Any] = {"adapter": {name: adapters / name for name in ADAPTERS}}
    with serving(tiny_service(model, tmp_path / "wide", **options)) as wide:
        sizes = [adapter.nbytes for adapter in wide.service.adapters.views.serving()]
        expected = compare(wide, *ADAPTERS, max_tokens=8)
    memory = int(1.1 * max(sizes))
    with serving(tiny_service(model, tmp_path / "narrow", adapter_memory=memory, **options)) as narrow:
        found = compare(narrow, *ADAPTERS, max_tokens=8)
        narrow.wait_until_idle()
    for one, other in zip(found["cases"][0]["pairs"], expected["cases"][0]["pairs"], strict=True):
        assert one["kl"] == pytest.approx(other["kl"], rel=1e-3, abs=1e-7)


def test_a_full_queue_is_told_before_the_stream_begins(tmp_path: Path, model: Path) -> None:
    service = tiny_service(model, tmp_path, max_num_seqs=1, max_waiting=1)
    with serving(service) as running:
        connections = [
            connect(running, "/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 1500})
            for _ in range(2)
        ]
        running.call(_until_open(running, 2))
        with running.http() as http:
            body = {"targets": ["tiny", "tiny"], "messages": MESSAGES, "stream": True}
            answer = http.post("/v1/compare", json=body)
        for connection in connections:
            connection.close()
        assert answer.status_code == 429
        running.wait_until_idle()


def test_no_more_than_some_comparisons_at_a_time(slow_server: Running) -> None:
    body = {"targets": ["tiny", "alpha"], "messages": MESSAGES, "reference": LONG, "max_tokens": 0}
    connections = [connect(slow_server, "/v1/compare", body) for _ in range(MAX_COMPARISONS)]
    slow_server.call(_until_open(slow_server, 2 * MAX_COMPARISONS))
    with slow_server.http() as http:
        answer = http.post("/v1/compare", json=body)
    for connection in connections:
        connection.close()
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "queue_full"
    assert int(answer.headers["retry-after"]) >= 1
    slow_server.wait_until_idle()
    assert compare(slow_server, "tiny", "alpha")["object"] == "comparison"


async def _until_open(server: Running, count: int) -> None:
    while server.service.engine.num_open < count:
        await asyncio.sleep(0)
