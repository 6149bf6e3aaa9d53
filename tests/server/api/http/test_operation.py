"""Keys, health, version, metrics, docs, bounds on the queue."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from manylora.server.api.app import create_app
from manylora.server.metrics.labels import BASE
from tests.support.raw_requests import AsgiExchange
from tests.support.running_server import Running, serving, tiny_service
from tests.support.spelled_targets import Asker, Spelling, Told

pytestmark = pytest.mark.slow

KEYS = ["first-key", "schlüssel"]
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    """A server that needs a key."""
    service = tiny_service(model, tmp_path_factory.mktemp("data"), api_key=KEYS)
    with serving(service) as running:
        yield running


@pytest.mark.parametrize("key", KEYS)
def test_every_key_opens(locked: Running, key: str) -> None:
    header = [(b"authorization", f"Bearer {key}".encode())]
    with locked.http() as http:
        assert http.post("/v1/chat/completions", json=CHAT, headers=header).status_code == 200


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer second-key", "Basic first-key", "first-key", "Bearer first-key x"],
)
def test_nothing_else_opens(locked: Running, value: str) -> None:
    headers = {"authorization": value} if value else {}
    with locked.http() as http:
        for method, path in (
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/load_lora_adapter"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/version"),
            ("GET", "/health/../v1/models"),
            ("GET", "/v1/models?/health"),
            ("GET", "/v1/models/?/health"),
        ):
            answer = http.request(method, path, headers=headers)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert "x-request-id" in answer.headers


@pytest.mark.parametrize("path", ["/anything", "//health", "/health/../v1/models"])
def test_where_there_is_no_route_there_is_nothing_to_open(locked: Running, path: str) -> None:
    """The same with a key as without: who may do what is a matter of the route that matches."""
    asker = Asker(locked.url)
    for key in (None, "wrong", KEYS[0]):
        assert asker.ask(Spelling("GET", path), key) == Told(404, "not_found")
    asker.close()
    with locked.http() as http:
        assert "x-request-id" in http.get("/anything").headers


def test_a_host_header_opens_nothing(locked: Running) -> None:
    with locked.http() as http:
        answer = http.get("/v1/models", headers={"host": "x/health?", "x-original-url": "/health"})
    assert answer.status_code in {400, 401}


def test_probes_and_docs_need_no_key(locked: Running) -> None:
    with locked.http() as http:
        for path in ("/health", "/ready", "/docs", "/openapi.json"):
            assert http.get(path).status_code == 200
        assert http.get("/openapi.json").json()["security"] == [{"key": []}, {"x-api-key": []}]


def test_client_authentication_error(locked: Running) -> None:
    with pytest.raises(openai.AuthenticationError):
        locked.client(api_key="wrong").models.list()
    assert locked.client(api_key="first-key").models.list().data


def test_health_ready_version(server: Running) -> None:
    with server.http() as http:
        assert http.get("/health").status_code == 200
        assert http.get("/ready").status_code == 200
        version = http.get("/version").json()
    assert version["model"] == "tiny"
    assert {"version", "decoder", "kernels", "kernels_note", "dtype", "device", "fingerprint"} <= set(version)


def test_not_ready_before_adapters_are_loaded(server: Running) -> None:
    server.service.ready = False
    try:
        with server.http() as http:
            answer = http.get("/ready")
            assert http.get("/health").status_code == 200
    finally:
        server.service.ready = True
    assert answer.status_code == 503


def test_after_the_engine_has_stopped(tmp_path: Path, model: Path) -> None:
    with serving(tiny_service(model, tmp_path)) as running:
        running.call(running.service.engine.stop())
        with running.http() as http:
            for answer in (
                http.get("/health"),
                http.get("/ready"),
                http.post("/v1/chat/completions", json=CHAT),
                http.post("/v1/chat/completions", json={**CHAT, "stream": True}),
            ):
                assert answer.status_code == 503
        with pytest.raises(openai.InternalServerError):
            running.client().completions.create(model="tiny", prompt="x")


def test_answers_that_a_stop_cuts_short_say_so(tmp_path: Path, model: Path) -> None:
    with serving(tiny_service(model, tmp_path)) as running:
        stream = running.client().completions.create(
            model="tiny", prompt="x", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        assert next(stream).choices
        running.call(running.service.engine.stop())
        with pytest.raises(openai.APIError, match="stopped before"):
            list(stream)


def test_a_full_queue_says_when_to_come_back(tmp_path: Path, model: Path) -> None:
    with serving(tiny_service(model, tmp_path, max_num_seqs=1, max_waiting=1)) as running:
        options: dict[str, Any] = {"model": "tiny", "prompt": "x", "extra_body": {"ignore_eos": True}}
        stream = running.client().completions.create(max_tokens=2000, n=2, stream=True, **options)
        assert next(stream).choices
        with pytest.raises(openai.RateLimitError) as full:
            running.client().completions.create(max_tokens=1, **options)
        assert int(full.value.response.headers["retry-after"]) >= 1
        assert full.value.code == "queue_full"
        stream.close()
        running.wait_until_idle()
        assert running.client().completions.create(max_tokens=1, **options).choices
        stream = running.client().completions.create(max_tokens=2000, stream=True, **options)
        assert next(stream).choices
        with pytest.raises(openai.RateLimitError):  # the first of the two is taken back
            running.client().completions.create(max_tokens=1, **{**options, "prompt": ["a", "b"]})
        stream.close()
        running.wait_until_idle()
        with pytest.raises(openai.BadRequestError, match="the server takes 2") as never:
            running.client().completions.create(max_tokens=1, **{**options, "prompt": ["a", "b", "c"]})
        assert never.value.param == "n"
        running.wait_until_idle()


def test_metrics(server: Running) -> None:
    server.client().chat.completions.create(**CHAT)
    with server.http() as http:
        http.post("/v1/chat/completions", json={**CHAT, "model": "<hostile>"})
        answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert f'manylora_requests_total{{adapter="{BASE}"' in answer.text
    assert 'manylora_requests_rejected_total{reason="not_found"}' in answer.text
    assert "hostile" not in answer.text


def test_examples_in_the_docs_run(server: Running) -> None:
    with server.http() as http:
        assert "swagger" in http.get("/docs").text
        schema = http.get("/openapi.json").json()
        ran = 0
        for path, operations in schema["paths"].items():
            body = operations.get("post", {}).get("requestBody")
            if body is None or "lora" in path or "{name}" in path:
                continue
            if "{upload_id}" in path or path == "/v1/fine_tuning/jobs":  # of parts and files that nobody sent
                continue
            if path.startswith("/v1/tenants"):  # which a server without keys does not take
                continue
            for example in body["content"].get("application/json", {}).get("examples", {}).values():
                value = dict(example["value"])
                if "input_file_id" in value:  # nor anybody's files
                    files = {"file": ("lines.jsonl", b"{}")}
                    uploaded = http.post("/v1/files", data={"purpose": "batch"}, files=files)
                    value["input_file_id"] = uploaded.json()["id"]
                if "response_id" in value:  # nobody else's answer is shown there
                    value["response_id"] = http.post("/v1/chat/completions", json=CHAT).json()["id"]
                answer = http.post(path, json=value)
                assert answer.status_code == 200, answer.text
                ran += 1
    assert ran >= 9
    _check_references(schema, schema)


def _check_references(node: Any, schema: dict[str, Any]) -> None:
    """Every ``$ref`` leads somewhere."""
    if isinstance(node, list):
        for item in node:
            _check_references(item, schema)
    elif isinstance(node, dict):
        if "$ref" in node:
            target: Any = schema
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target[step]
        for item in node.values():
            _check_references(item, schema)


async def test_unexpected_faults_tell_nothing(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = tiny_service(model, tmp_path)
    app = create_app(service)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service.tokenizer, "render_chat", broken)
    exchange = AsgiExchange(CHAT)
    caplog.set_level(logging.CRITICAL)
    async with app.router.lifespan_context(app):
        with pytest.raises(RuntimeError):  # for the server's log, after the answer
            await exchange.run(app)
    assert exchange.sent[0]["status"] == 500
    assert b"x-request-id" in dict(exchange.sent[0]["headers"])
    assert b"secret" not in exchange.payload
    assert b'"code":"internal_error"' in exchange.payload


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"x" * 1_000_000,
        b"GET /" + b"x" * 1_000_000,
        b"GET /health HTTP/1.1\r\n" + b"X: x\r\n" * 100_000,
    ],
    ids=lambda garbage: str(garbage[:30]),
)
def test_the_listener_survives_garbage(server: Running, garbage: bytes) -> None:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):  # it may be closed before all is sent
            connection.sendall(garbage)
        with contextlib.suppress(ConnectionError):
            assert b" 400 " in connection.recv(4096)
    with server.http() as http:
        assert http.get("/health").status_code == 200


def test_a_large_head_within_the_bound(server: Running) -> None:
    with server.http() as http:
        for _ in range(3):  # on one connection: each request has the whole bound
            assert http.get("/health", headers={"x": "x" * 40_000}).status_code == 200


def test_a_base_model_with_any_name(tmp_path: Path, model: Path) -> None:
    name = "größe/模型 1"
    with serving(tiny_service(model, tmp_path, served_model_name=name)) as running:
        raw = running.client().completions.with_raw_response.create(model=name, prompt="x", max_tokens=1)
        assert raw.parse().model == name
        assert raw.headers["x-manylora-model"] == "gr%C3%B6%C3%9Fe/%E6%A8%A1%E5%9E%8B 1"
        assert running.client().models.retrieve(name).id == name


def test_the_interactive_page_needs_no_network(server: Running) -> None:
    with server.http() as http:
        page = http.get("/docs").text
        assets = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(assets) == 3
        for asset in assets:
            assert "//" not in asset
            answer = http.get(f"/{asset}")
            assert answer.status_code == 200
            assert len(answer.content) > 1000
        assert http.get("/docs/other.js").status_code == 404
