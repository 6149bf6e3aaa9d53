"""Routes that others have and this server doesn't are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from manylora.server.api.http.missing_routes import MISSING, why_missing
from tests.support.running_server import Running, serving, tiny_service

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    with serving(tiny_service(model, tmp_path_factory.mktemp("data"))) as made:
        yield made


@pytest.mark.parametrize("prefix", MISSING)
def test_every_method_under_a_prefix(running: Running, prefix: str) -> None:
    with running.http() as http:
        for method in ("GET", "POST", "DELETE"):
            path = f"{prefix.rstrip('/')}/some/thing"
            answer = http.request(method, path, content=b"not JSON" if method == "POST" else None)
            assert answer.status_code == 404
            told = answer.json()["error"]
            assert told["code"] == "unsupported_endpoint"
            assert told["message"] == f"{method} {path} is not supported by this server: {MISSING[prefix]}"


def test_by_openais_client(running: Running) -> None:
    client: Any = running.client()
    asked: list[Callable[[], Any]] = [
        lambda: client.audio.speech.create(model="tiny", voice="alloy", input="Hi"),
        lambda: client.audio.transcriptions.create(model="tiny", file=b"RIFF" * 10_000),
        lambda: client.images.generate(model="tiny", prompt="A cat"),
        lambda: client.moderations.create(input="Hi"),
        lambda: client.chat.completions.retrieve("chatcmpl-1"),
    ]
    for ask in asked:
        with pytest.raises(openai.NotFoundError, match="is not supported by this server") as refused:
            ask()
        assert refused.value.code == "unsupported_endpoint"


@pytest.mark.parametrize(
    "path", ["/v1/audiox", "/v1", "/v2/audio", "/v1/messages", "/v1/chat/completions", "/"]
)
def test_other_paths_are_what_they_were(path: str) -> None:
    assert why_missing({"type": "http", "path": path}) is None


def test_behind_a_proxy() -> None:
    assert why_missing({"type": "http", "path": "/lora/v1/audio/speech", "root_path": "/lora"})
