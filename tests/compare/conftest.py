"""The tiny model, adapters and server of the API's tests, and comparisons on them."""

from __future__ import annotations

from typing import Any

from tests.api.conftest import adapters, model, server, shared, slow
from tests.api.running import Running

__all__ = ["adapters", "compare", "model", "server", "shared", "slow"]

MESSAGES = [{"role": "user", "content": "Tell me <b>something</b> & more"}]


def compare(server: Running, *targets: str, **fields: Any) -> dict[str, Any]:
    """The result of a comparison."""
    body = {"targets": list(targets), "max_tokens": 12, **fields}
    if not {"messages", "conversations", "prompt"} & set(body):
        body["messages"] = MESSAGES
    with server.http() as http:
        answer = http.post("/v1/compare", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result
