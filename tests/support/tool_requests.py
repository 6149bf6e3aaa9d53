"""Tools that tests offer, what scripted models write of them, and what is looked at in answers."""

from __future__ import annotations

import json
from typing import Any

from tests.support.scripted import Scripted

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["place"],
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time"}}
TOOLS = [WEATHER, TIME]
NAMED = {"type": "function", "function": {"name": "weather"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo {N}"}}\n</tool_call>'
TWO = f'Let me see.\n{CALL}\n<tool_call>\n{{"name": "time", "arguments": {{}}}}\n</tool_call>'


def calls_of(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in choice["message"].get("tool_calls", [])
    ]


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    """A choice without what differs from answer to answer, or only whole answers have."""
    message = {k: v for k, v in choice["message"].items() if k != "annotations"}
    if "tool_calls" in message:
        message["tool_calls"] = [{**call, "id": None} for call in message["tool_calls"]]
    return {"message": message, "finish_reason": choice["finish_reason"]}


def prompt(server: Scripted, model: str = "tiny", **body: Any) -> str:
    messages = body.pop("messages", [{"role": "user", "content": "Hi"}])
    with server.running.http() as http:
        tokens = http.post("/tokenize", json={"model": model, "messages": messages, **body})
        assert tokens.status_code == 200, tokens.text
        ids = tokens.json()["tokens"]
        return str(http.post("/detokenize", json={"model": model, "tokens": ids}).json()["prompt"])


def prompt_tokens(server: Scripted, **body: Any) -> int:
    return int(server.ask("", **body)["usage"]["prompt_tokens"])
