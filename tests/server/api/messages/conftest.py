"""A server whose answers tests write, asked as Anthropic's clients ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.scripted import Scripted, scripted, tool_service

HI: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather of a place.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """A base that calls tools, an adapter, and one that also thinks."""
    with (
        pytest.MonkeyPatch.context() as patch,
        scripted(tool_service(tmp_path_factory.mktemp("server")), patch) as made,
    ):
        yield made


def body_of(**body: Any) -> dict[str, Any]:
    """A request with what every one needs."""
    return {"model": "tiny", "max_tokens": 400, "messages": HI, **body}


def ask(server: Scripted, text: str, *, status: int = 200, **body: Any) -> dict[str, Any]:
    """The whole answer to a request, whose answer is ``text``."""
    server.text, server.tokens = text, None
    with server.running.http() as http:
        answer = http.post("/v1/messages", json=body_of(**body))
    assert answer.status_code == status, answer.text
    result: dict[str, Any] = answer.json()
    return result


def events_of(server: Scripted, text: str, **body: Any) -> list[dict[str, Any]]:
    """The events of the same, streamed, each by its name."""
    server.text, server.tokens = text, None
    events, names = [], []
    with (
        server.running.http() as http,
        http.stream("POST", "/v1/messages", json=body_of(**body, stream=True)) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    assert names == [event["type"] for event in events]
    return events


def built(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the events of a stream come to, but for the input of calls, which stays text."""
    assert events[0]["type"] == "message_start"
    message: dict[str, Any] = events[0]["message"]
    assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == ([], None, 0)
    blocks, is_open = message["content"], False
    for event in events[1:]:
        kind = event["type"]
        if kind == "content_block_start":
            assert (event["index"], is_open) == (len(blocks), False)
            blocks.append(event["content_block"])
            is_open = True
            if event["content_block"]["type"] == "tool_use":
                assert event["content_block"]["input"] == {}
                event["content_block"]["input"] = ""
        elif kind == "content_block_delta":
            assert (event["index"], is_open) == (len(blocks) - 1, True)
            _add(blocks[-1], event["delta"])
        elif kind == "content_block_stop":
            assert (event["index"], is_open) == (len(blocks) - 1, True)
            is_open = False
        elif kind == "message_delta":
            assert not is_open
            message |= event["delta"]
            message["usage"] |= event["usage"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    return message


def _add(block: dict[str, Any], delta: dict[str, Any]) -> None:
    fields = {
        "text_delta": ("text", "text"),
        "thinking_delta": ("thinking", "thinking"),
        "signature_delta": ("signature", "signature"),
        "input_json_delta": ("partial_json", "input"),
    }
    given, name = fields[delta["type"]]
    block[name] += delta[given]
