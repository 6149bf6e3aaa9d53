"""Clients that go away: whatever they were doing, nothing of it keeps running and nothing is lost."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from manylora.server.metrics.labels import OWN_LABELS
from tests.support.raw_requests import connect
from tests.support.running_server import Running, serving, tiny_service
from tests.support.served_adapters import ADAPTERS
from tests.support.waiting import until

pytestmark = pytest.mark.slow

ROUNDS = 200


def _value(server: Running, name: str, **labels: str) -> float:
    return server.service.metrics.registry.get_sample_value(f"manylora_{name}", labels) or 0.0


def _total(server: Running, name: str) -> float:
    return sum(_value(server, name, adapter=label) for label in (*ADAPTERS, *OWN_LABELS))


async def _until_running(server: Running, count: int = 1) -> None:
    await until(lambda: len(server.service.core.scheduler.running) >= count)


async def _until_generating(server: Running) -> None:
    await until(lambda: any(s.num_output_tokens for s in server.service.core.scheduler.running))


def _check_no_tokens_after(server: Running) -> None:
    assert _value(server, "tokens_after_abort_total") == 0
    before = sum(
        _value(server, "generated_tokens_total", adapter=name) for name in (*ADAPTERS, "base", "mix")
    )
    server.wait_until_idle()
    after = sum(_value(server, "generated_tokens_total", adapter=name) for name in (*ADAPTERS, "base", "mix"))
    assert after == before


@pytest.mark.sweep
def test_two_hundred_clients_that_go_away(slow_server: Running) -> None:
    """In turn: mid-stream and mid-prefill, streaming and not, both endpoints, several answers, mixes."""
    for i in range(ROUNDS):
        stream, mid_prefill, chat = bool(i % 2), bool(i // 2 % 2), bool(i // 4 % 2)
        text = "x" * (1500 if mid_prefill else 5)
        body: dict[str, Any] = {
            "model": ("tiny", "alpha", "beta*0.5+gamma*0.5")[i % 3],
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": stream,
            "n": 1 + i % 2,
        }
        if chat:
            path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": text}]
        else:
            path, body["prompt"] = "/v1/completions", [text, text]
        connection = connect(slow_server, path, body)
        if stream and not mid_prefill:
            assert b"200 OK" in connection.recv(4096)
        slow_server.call(_until_running(slow_server) if mid_prefill else _until_generating(slow_server))
        connection.close()
        slow_server.wait_until_idle()
    _check_no_tokens_after(slow_server)
    assert _total(slow_server, "aborts_total") >= ROUNDS


def test_many_at_once_beside_one_that_stays(slow_server: Running) -> None:
    body = {"model": "alpha", "prompt": "stay", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    with slow_server.http() as http:
        alone = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    stays = connect(slow_server, "/v1/completions", body)
    others = [
        connect(slow_server, "/v1/completions", {**body, "model": "beta", "stream": bool(i % 2)})
        for i in range(20)
    ]
    slow_server.call(_until_running(slow_server, 2))
    for connection in others:
        connection.close()
    answer = b""
    while not answer.endswith(b"}"):
        answer += stays.recv(65536)
    stays.close()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"] == alone
    slow_server.wait_until_idle()


def test_reset_connections(slow_server: Running) -> None:
    """A client that vanishes with a reset instead of a proper end."""
    for stream in (True, False):
        connection = connect(
            slow_server,
            "/v1/completions",
            {"model": "alpha", "prompt": "x", "max_tokens": 1500, "ignore_eos": True, "stream": stream},
        )
        slow_server.call(_until_running(slow_server))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.close()
        slow_server.wait_until_idle()


@pytest.mark.parametrize("stream", [True, False])
def test_while_waiting_for_a_cold_adapter(tmp_path: Path, model: Path, adapters: Path, stream: bool) -> None:
    """Memory for one adapter, held by a running answer: whoever wants another waits, and may leave."""
    options: dict[str, Any] = {"adapter": {name: adapters / name for name in ADAPTERS[:2]}}
    probe = tiny_service(model, tmp_path / "probe", **options)
    with serving(probe) as running:
        sizes = [adapter.nbytes for adapter in running.service.adapters.views.serving()]
    service = tiny_service(model, tmp_path / "real", adapter_memory=int(1.5 * max(sizes)), **options)
    with serving(service) as running:
        body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
        holder = connect(running, "/v1/completions", {"model": "alpha", **body})
        running.call(_until_running(running))
        waiter = connect(running, "/v1/completions", {"model": "beta", **body, "max_tokens": 1})
        running.call(_until_references(running, 2))
        waiter.close()
        running.call(_until_references(running, 1))
        holder.close()
        running.wait_until_idle()
        text = running.client().completions.create(model="beta", prompt="x", max_tokens=1)
        assert text.choices


async def _until_references(server: Running, count: int) -> None:
    await until(lambda: server.references == count)
