"""The service that most tests of the API use: three adapters on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manylora.server.service import Service
from tests.support.running_server import Running, tiny_service

ADAPTERS = ("alpha", "beta", "gamma")
MESSAGES = [{"role": "user", "content": "Tell me <b>something</b> & more"}]


def service_of(data: Path, model: Path, adapters: Path, **options: Any) -> Service:
    """A service that serves all of :data:`ADAPTERS`."""
    named = {name: adapters / name for name in ADAPTERS}
    return tiny_service(model, data, adapter=named, adapter_root=[adapters], **options)


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
