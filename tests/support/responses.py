"""Asking for responses, and reading their streams."""

from __future__ import annotations

import json
from typing import Any

from tests.support.scripted import Scripted

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
}


def ask(server: Scripted, answer: str, **body: Any) -> Any:
    """A response that is ``answer``."""
    server.text, server.tokens = answer, None
    return server.running.client().responses.create(**{"model": "tiny", "input": "Hi", **body})


def events_of(server: Scripted, text: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, each by its name."""
    server.text, server.tokens = text, None
    body = {"model": "tiny", "input": "Hi", "stream": True, **body}
    events, names, last = [], [], ""
    with (
        server.running.http() as http,
        http.stream("POST", "/v1/responses", json=body) as answer,
    ):
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            elif line.startswith("data: "):
                last = line.removeprefix("data: ")
                events += [json.loads(last)] if last != "[DONE]" else []
    assert last == "[DONE]"
    assert names == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def bare(value: Any) -> Any:
    """An answer without ids and times."""
    if isinstance(value, dict):
        gone = ("id", "call_id", "item_id", "created_at", "completed_at", "cached_tokens")
        return {name: bare(each) for name, each in value.items() if name not in gone}
    return [bare(each) for each in value] if isinstance(value, list) else value


def built(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output items that the deltas of a stream come to."""
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append(event["item"])
        elif kind == "content_part.added":
            items[-1]["content"].append(event["part"])
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            items[-1]["content"][event["content_index"]]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            items[-1]["arguments"] += event["delta"]
        elif kind == "output_item.done":
            items[-1]["status"] = event["item"]["status"]
            assert items[-1] == event["item"]
        if "item_id" in event:
            assert event["item_id"] == items[-1]["id"]
    return items
