"""Requests that the API refuses: what they are made of, and what every refusal must look like."""

from __future__ import annotations

from typing import Any

from tests.support.running_server import Running

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def valid_request(endpoint: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A small valid request to ``endpoint`` with ``fields`` over it."""
    valid: dict[str, dict[str, Any]] = {
        CHAT: {"model": "tiny", "messages": MESSAGES, "max_tokens": 2},
        TEXT: {"model": "tiny", "prompt": "Hello", "max_tokens": 2},
    }
    base = valid.get(endpoint, {})
    if "max_completion_tokens" in fields and "max_tokens" not in fields:
        base.pop("max_tokens")
    return {**base, **fields}


def checked_error(body: Any) -> dict[str, Any]:
    """The error that ``body`` is, which must have exactly the four fields of OpenAI's."""
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def check_alive(server: Running) -> None:
    """Assert that the server answers a valid request, and is idle and without leaks afterwards."""
    with server.http() as http:
        assert http.post(CHAT, json=valid_request(CHAT, {})).status_code == 200
    server.wait_until_idle()
