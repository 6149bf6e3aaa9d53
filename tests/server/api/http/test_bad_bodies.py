"""Bad bodies, routes and floods: each is refused with an error, and the server answers as before."""

from __future__ import annotations

from typing import Any

import pytest

from manylora.server.api.http.limits import MAX_BODY_BYTES
from tests.support.refused_requests import CHAT, MESSAGES, TEXT, check_alive, checked_error, valid_request
from tests.support.running_server import Running

RAW: list[tuple[bytes, str | None, str]] = [
    (b"", None, "empty"),
    (b"{", None, "not valid JSON"),
    (b'{"model": "tiny",}', None, "not valid JSON"),
    (b'"tiny"', None, "object"),
    (b"[]", None, "object"),
    (b"null", None, "object"),
    (b'{"model": "t\xffny"}', None, "UTF-8"),
    (b'{"model": "\\ud800"}', None, "surrogate"),
    (b"[" * 100_000, None, "not valid JSON"),
    (b'{"a":' * 100_000, None, "not valid JSON"),
    (
        b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        "temperature",
        "finite",
    ),
    (b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"top_p":-Infinity}', "top_p", "finite"),
    (b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"min_p":1e999}', "min_p", "min_p"),
    (b'{"model":"tiny","messages":[],"logit_bias":{"1":NaN}}', "logit_bias.1", "finite"),
    (
        b'{"model":"tiny","adapters":[{"name":"alpha"},{"name":"beta","weight":NaN}],"messages":[]}',
        "adapters[1].weight",
        "finite",
    ),
]


def _name(value: object) -> str | None:
    return str(value)[:60] if isinstance(value, bytes) else None


@pytest.mark.slow
@pytest.mark.parametrize(("body", "param", "text"), RAW, ids=_name)
def test_raw_bodies(server: Running, body: bytes, param: str | None, text: str) -> None:
    with server.http() as http:
        answer = http.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = checked_error(answer.json())
    assert error["param"] == param
    assert text in error["message"]
    check_alive(server)


def test_unknown_routes_and_methods(server: Running) -> None:
    with server.http() as http:
        missing = http.get("/v2/anything")
        wrong = http.get(CHAT)
        slash = http.post(CHAT + "/", json=valid_request(CHAT, {}))
    assert missing.status_code == 404
    assert "/v2/anything" in checked_error(missing.json())["message"]
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    checked_error(wrong.json())
    assert slash.status_code == 200


def test_bodies_over_the_limit(server: Running) -> None:
    def chunks() -> object:
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    with server.http() as http:
        declared = http.post(CHAT, content=b" " * (MAX_BODY_BYTES + 1))
        assert declared.status_code == 413
        assert checked_error(declared.json())["code"] == "body_too_large"
        undeclared = http.post(CHAT, content=chunks())  # type: ignore[arg-type]
        assert undeclared.status_code == 413
        checked_error(undeclared.json())
    check_alive(server)


FLOODS: list[tuple[str, dict[str, Any], str | None]] = [
    (CHAT, {f"unknown{i}": 1 for i in range(50_000)}, None),
    (CHAT, {"messages": [{**MESSAGES[0], **{f"unknown{i}": 1 for i in range(50_000)}}]}, None),
    (CHAT, {"messages": [{}] * 300_000}, "messages"),
    (CHAT, {"adapters": [{}] * 300_000}, "adapters"),
    (CHAT, {"logit_bias": {str(i): "x" for i in range(200_000)}}, "logit_bias"),
    (CHAT, {"stop": [1] * 1_000_000}, "stop"),
    (TEXT, {"prompt": [[1]] * 200_000}, "prompt"),
    ("/detokenize", {"tokens": ["x"] * 500_000}, "tokens[0]"),
    (CHAT, {"x" * 1_000_000: 1}, "x" * 100),
]


@pytest.mark.slow
@pytest.mark.parametrize(("endpoint", "fields", "param"), FLOODS, ids=lambda value: str(value)[:40])
@pytest.mark.timeout(20)
def test_floods_cost_little(
    server: Running, endpoint: str, fields: dict[str, Any], param: str | None
) -> None:
    with server.http() as http:
        answer = http.post(endpoint, json=valid_request(endpoint, fields))
    assert answer.status_code == 400
    assert checked_error(answer.json())["param"] == param
    assert len(answer.content) < 2000
    check_alive(server)
