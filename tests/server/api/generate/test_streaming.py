"""Streams as bytes: on raw ASGI, with faults in the middle, with clients that keep still."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from manylora.server.api.app import create_app
from manylora.server.api.http import event_stream as sse
from manylora.server.service import Service
from tests.support.raw_requests import AsgiExchange
from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of
from tests.support.waiting import until

BODY = {
    "model": "alpha",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 6,
    "temperature": 0,
    "ignore_eos": True,
    "stream": True,
}


@pytest.fixture
def service(tmp_path: Path, model: Path, adapters: Path) -> Service:
    return service_of(tmp_path, model, adapters)


@pytest.mark.slow
async def test_raw_asgi_stream(service: Service) -> None:
    app = create_app(service)
    exchange = AsgiExchange(BODY)
    async with app.router.lifespan_context(app):
        await exchange.run(app)
    start, *rest = exchange.sent
    assert start["type"] == "http.response.start"
    assert start["status"] == 200
    headers = dict(start["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"x-manylora-model"].startswith(b"alpha@")
    assert headers[b"x-request-id"].startswith(b"req-")
    assert [message["more_body"] for message in rest] == [True] * (len(rest) - 1) + [False]
    assert len(rest) >= 4  # it comes in pieces, not in one
    events = exchange.payload.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


@pytest.mark.slow
async def test_raw_asgi_client_hangs_up(service: Service) -> None:
    app = create_app(service)
    exchange = AsgiExchange({**BODY, "max_tokens": 1500})
    exchange.hang_up_after = 3
    async with app.router.lifespan_context(app):
        await exchange.run(app)
        assert b"[DONE]" not in exchange.payload
        assert service.adapters.residency.references.total <= 1  # the engine confirms within a step
        await until(lambda: not service.engine.num_open)
        assert service.adapters.residency.references.total == 0
        assert service.metrics.registry.get_sample_value("manylora_aborts_total", {"adapter": "alpha"}) == 1
        assert service.metrics.registry.get_sample_value("manylora_tokens_after_abort_total") == 0


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
async def test_raw_asgi_hang_up_before_the_first_byte(service: Service, stream: bool) -> None:
    app = create_app(service)
    exchange = AsgiExchange({**BODY, "max_tokens": 1500, "stream": stream})
    exchange.hung_up.set()
    async with app.router.lifespan_context(app):
        await exchange.run(app)
        await until(lambda: not service.engine.num_open)
        assert service.adapters.residency.references.total == 0
    assert b"[DONE]" not in exchange.payload


@pytest.mark.slow
async def test_silent_streams_get_comments(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "PING_SECONDS", 0.001)
    app = create_app(service)
    exchange = AsgiExchange({**BODY, "max_tokens": 200})
    async with app.router.lifespan_context(app):
        await exchange.run(app)
    assert b": keep-alive\n\n" in exchange.payload
    assert exchange.payload.endswith(b"data: [DONE]\n\n")


@pytest.fixture
def faulty(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server whose fifth step fails."""
    advance, count = service.core.advance, 0

    def failing() -> Any:
        nonlocal count
        count += 1
        if count == 5:
            raise RuntimeError("secret detail of the kernel")
        return advance()

    monkeypatch.setattr(service.core, "advance", failing)
    with serving(service) as running:
        yield running


@pytest.mark.slow
def test_a_fault_in_a_stream_is_an_event(faulty: Running) -> None:
    with faulty.http() as http, http.stream("POST", "/v1/chat/completions", json=BODY) as answer:
        assert answer.status_code == 200
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    error = json.loads(events[-2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "server_error"
    assert "secret" not in json.dumps(events)
    faulty.wait_until_idle()
    assert faulty.client().chat.completions.create(model="alpha", messages=[{"role": "user", "content": "x"}])


@pytest.mark.slow
def test_the_client_raises_on_a_fault_in_a_stream(faulty: Running) -> None:
    stream = faulty.client().chat.completions.create(
        model="alpha", messages=[{"role": "user", "content": "Hello"}], max_tokens=50, stream=True
    )
    with pytest.raises(openai.APIError, match="failed while generating"):
        list(stream)


@pytest.mark.slow
def test_a_fault_without_a_stream_is_a_500(faulty: Running) -> None:
    with faulty.http() as http:
        answer = http.post("/v1/chat/completions", json={**BODY, "stream": False})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation_failed"
    assert "secret" not in answer.text
