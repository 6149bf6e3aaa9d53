"""Tools and choices that are refused by name, and those that need no place."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.scripted import Scripted
from tests.support.tool_requests import CALL, NAMED, TIME, TOOLS, WEATHER

pytestmark = pytest.mark.slow


def _allowed(mode: str, tools: list[Any]) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": "mute", "tools": TOOLS}, "tools"),
    ({"model": "deaf", "tools": TOOLS}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": NAMED}, "tool_choice"),
    ({"tool_choice": NAMED, "tools": [TIME]}, "tool_choice"),
    ({"tool_choice": "any", "tools": TOOLS}, "tool_choice"),
    ({"tool_choice": {"type": "custom", "custom": {"name": "x"}}, "tools": TOOLS}, "tool_choice.type"),
    ({"tool_choice": {"type": "function"}, "tools": TOOLS}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {}}, "tools": TOOLS}, "tool_choice.function"),
    ({"tool_choice": _allowed("auto", []), "tools": TOOLS},
     "tool_choice.allowed_tools.tools"),
    ({"tool_choice": _allowed("x", [NAMED]), "tools": TOOLS},
     "tool_choice.allowed_tools.mode"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
     "tools[0].function.parameters.type"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
     "tools[0].function.parameters"),
    ({"tools": [{"type": "function", "function": {"name": "f", "x": 1}}]}, "tools[0].function.x"),
    ({"tools": [TIME] * 129}, "tools"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"thinking_token_budget": 5}, "thinking_token_budget"),
    ({"thinking_token_budget": -2}, "thinking_token_budget"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
    ({"reasoning_format": "odd"}, "reasoning_format"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_refused(server: Scripted, body: dict[str, Any], param: str) -> None:
    error = server.ask("", status=400, **body)["error"]
    assert error["param"] == param, error


def test_tools_that_no_answer_calls_need_no_place(server: Scripted) -> None:
    for model in ("mute", "deaf"):
        (choice,) = server.ask("No.", model=model, tools=TOOLS, tool_choice="none")["choices"]
        assert choice["message"]["content"] == "No."
    (choice,) = server.ask(CALL, tools=TOOLS, tool_choice="none")["choices"]
    assert choice["message"]["content"] == CALL
