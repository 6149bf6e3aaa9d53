"""Varied conversations in OpenAI's format, the same on every run."""

from __future__ import annotations

import json
import random
from typing import Any

_TEXTS = (
    "Hello there.",
    "What is 2 + 2?",
    "日本の首都はどこですか。",
    "请用一句话回答。",
    "안녕하세요 👋",
    "A fox 🦊 and a family 👨‍👩‍👧‍👦!",
    "Line one\nline two\n\n\tindented",
    " leading and trailing ",
    "naïve café — “quotes” …",
    "<b>html</b> & {curly} {{ double }} {% raw %}",
    "مرحبا بالعالم",
    "0" * 40,
    "a",
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a place 🌦",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


def conversations(count: int, seed: int = 0, *, has_tools: bool = True) -> list[dict[str, Any]]:
    """``count`` rows of one to five turns, every third with tools, some with a system prompt or parts."""
    rng = random.Random(seed)
    return [_conversation(rng, has_tools=has_tools and index % 3 == 0) for index in range(count)]


def _conversation(rng: random.Random, *, has_tools: bool) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.5:
        messages.append({"role": rng.choice(["system", "developer"]), "content": _text(rng)})
    for _ in range(rng.randint(1, 5)):
        messages += _turn(rng, has_tools=has_tools)
    return {"messages": messages, "tools": [_TOOL]} if has_tools else {"messages": messages}


def _turn(rng: random.Random, *, has_tools: bool) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": _text(rng)}, {"type": "text", "text": _text(rng)}]
    user: dict[str, Any] = {"role": "user", "content": parts if rng.random() < 0.2 else _text(rng)}
    if rng.random() < 0.1:
        user["name"] = "ann"
    answer: dict[str, Any] = {"role": "assistant", "content": _text(rng)}
    if rng.random() < 0.2:
        answer["weight"] = 1
    if not has_tools or rng.random() < 0.3:
        return [user, answer]
    place = rng.choice(["Oslo", "東京"])
    function = {"name": "weather", "arguments": json.dumps({"place": place}, ensure_ascii=False)}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": function}]}
    return [user, call, {"role": "tool", "tool_call_id": "c1", "content": '{"sky": "☀️"}'}, answer]


def _text(rng: random.Random) -> str:
    return " ".join(rng.choice(_TEXTS) for _ in range(rng.randint(1, 3))).strip("\n") or "ok"
