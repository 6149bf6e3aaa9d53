"""Calls of tools as text, by their syntax: what a model would write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manylora.adapters.format.answers.syntax import AnswerFormat, CallSyntax, Shape


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any]


def write_answer(form: AnswerFormat, text: str, calls: Sequence[Call], reasoning: str = "") -> str:
    """An answer with reasoning, text and calls, as the form has places for them."""
    thought = ""
    if reasoning:
        assert form.reasoning is not None, "there is no place for reasoning"
        thought = f"{form.reasoning.open}\n{reasoning}\n{form.reasoning.close}\n\n"
    if not calls:
        return thought + text
    assert form.calls is not None, "there is no place for calls"
    return thought + text + write_calls(form.calls, calls)


def write_calls(syntax: CallSyntax, calls: Sequence[Call]) -> str:
    """All calls of an answer."""
    written = [f"{syntax.open}{_inner(syntax, call)}{syntax.close}" for call in calls]
    joined = syntax.separator.join(written)
    if syntax.listed:
        joined = f"[{joined}]"
    return f"{syntax.begin}{joined}{syntax.end}"


def describe(form: AnswerFormat) -> dict[str, Any]:
    """For people: one call, the markers of reasoning, and from what they are known."""
    example = None if form.calls is None else write_calls(form.calls, [Call("NAME", {"KEY": "VALUE"})])
    markers = None if form.reasoning is None else f"{form.reasoning.open}…{form.reasoning.close}"
    shown = {"source": form.source.value, "calls": example, "reasoning": markers}
    return shown if form.note is None else {**shown, "note": form.note}


def _inner(syntax: CallSyntax, call: Call) -> str:
    if syntax.shape is Shape.OBJECT:
        entry: dict[str, Any] = {syntax.name_key: call.name, syntax.arguments_key: dict(call.arguments)}
        return to_json(entry if syntax.wrap_key is None else {syntax.wrap_key: entry})
    if syntax.shape is Shape.NAMED:
        return f"{call.name}{syntax.name_end}{to_json(dict(call.arguments))}"
    tags = syntax.tags
    assert tags is not None, "a tagged call has tags"
    arguments = (
        f"{tags.open}{key}{tags.close}{value if isinstance(value, str) else to_json(value)}{tags.end}"
        for key, value in call.arguments.items()
    )
    return f"{call.name}{syntax.name_end}{''.join(arguments)}"


def to_json(value: Any) -> str:
    """JSON as chat templates write it."""
    return json.dumps(value, ensure_ascii=False)
