"""What is written comes back: random conversations through every known format, in any pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manylora.adapters.format.answers.families import CALLS, by_name
from manylora.adapters.format.answers.finding import find_format
from manylora.adapters.format.answers.samples import render_samples
from manylora.adapters.format.answers.syntax import AnswerFormat, ReasoningSyntax, Shape
from manylora.adapters.format.answers.values import types_of
from manylora.adapters.format.answers.writing import Call, write_answer
from tests.support.answers import Parsed, parse
from tests.support.tool_templates import TEMPLATES

THINK = ReasoningSyntax("<think>", "</think>")
FORMS: Mapping[str, AnswerFormat] = {
    **{name: by_name(name, THINK) for name in CALLS},
    **{
        f"template:{name}": find_format(
            template, None, lambda text: render_samples({"template": text, "special": {}})
        )
        for name, template in TEMPLATES.items()
    },
}

_NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,20}", fullmatch=True)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        '{"',
        "}",
        "{",
        "[",
        "]",
        '"',
        "\\",
        "\n",
        "\\n",
        "\\u007b",
        "<",
        "</",
        "null",
        "5",
        "[1]",
        " ",
        "🦊",
        "日本",
        "; ",
    ]
)
_SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _TEXTS
_VALUES = st.recursive(
    _SCALARS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)
_SCHEMAS: Mapping[type, str] = {
    str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object",
    type(None): "null",
}  # fmt: skip


def markers(form: AnswerFormat) -> tuple[str, ...]:
    """What would be read as the format's own, wherever a model writes it."""
    assert form.calls is not None
    return (
        *form.calls.markers,
        *(() if form.reasoning is None else (form.reasoning.open, form.reasoning.close)),
    )


def _spells(value: Any, words: tuple[str, ...]) -> bool:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return any(word in text for word in words)


@st.composite
def answers(draw: st.DrawFn, form: AnswerFormat) -> tuple[str, str, list[Call]]:
    """Reasoning, text and calls that the format can write.

    What it can't: text that spells its markers, and values of tags that spell their ends.
    """
    assert form.calls is not None
    most = 3 if form.calls.several else 1
    keys = _NAMES if form.calls.shape is Shape.TAGGED else _NAMES | _TEXTS
    arguments = st.dictionaries(keys, _VALUES, max_size=4)
    calls = [
        Call(draw(_NAMES), draw(arguments)) for _ in range(draw(st.integers(min_value=0, max_value=most)))
    ]
    if form.calls.shape is Shape.TAGGED:
        calls = [
            Call(c.name, {k: v for k, v in c.arguments.items() if not _spells(v, markers(form))})
            for c in calls
        ]
    text = draw(_TEXTS) if form.calls.trigger or not calls else ""
    thought = draw(_TEXTS).strip() if form.reasoning is not None else ""
    return thought, text, calls


def tools_of(calls: list[Call]) -> dict[str, dict[str, Any]]:
    """Schemas that say of every argument what it is; calls of one name share theirs."""
    found: dict[str, dict[str, Any]] = {}
    for call in calls:
        properties = found.setdefault(call.name, {})
        for key, value in call.arguments.items():
            kind = _SCHEMAS[type(value)]
            types = types_of(properties.get(key)) | {kind}
            properties[key] = {"type": kind} if types == {kind} else {"type": sorted(types)}
    return found


def _is_told(calls: list[Call], tools: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the schemas tell of all values what they are: a text that reads as JSON may be either."""
    return all(
        types_of(tools[call.name][key]) == {_SCHEMAS[type(value)]}
        for call in calls
        for key, value in call.arguments.items()
    )


def check(form: AnswerFormat, draw: Callable[[Any], Any]) -> None:
    """One random answer, whole, letter by letter, and cut in two at a random place."""
    thought, text, calls = draw(answers(form))
    tools = tools_of(calls)
    assert form.calls is not None
    if form.calls.shape is Shape.TAGGED and not _is_told(calls, tools):
        return
    if any(word in thought or word in text for word in markers(form)):
        return
    if not form.calls.trigger and text.lstrip().startswith("{"):
        return
    written = write_answer(form, text, calls, thought)
    whole = parse(form, written, tools)
    assert whole.read == [(call.name, dict(call.arguments)) for call in calls], written
    said = text.lstrip(" \t\r\n") if thought else text
    assert whole.text == (said.rstrip(" \t\r\n") if calls else said)
    assert whole.thought == thought.strip(" \t\r\n")
    assert parse(form, list(written), tools) == whole
    place = draw(st.integers(min_value=0, max_value=len(written)))
    assert parse(form, [written[:place], written[place:]], tools) == whole


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_written_comes_back(name: str, data: st.DataObject) -> None:
    check(FORMS[name], data.draw)


@pytest.mark.sweep
@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_ten_thousand_conversations_come_back(name: str, data: st.DataObject) -> None:
    """500 for each of more than 20 formats."""
    check(FORMS[name], data.draw)


CALLS_OF_ONE = [Call("f", {"a": "b{<c", "d": [1, {"e": None}]}), Call("g", {})]


@pytest.mark.parametrize("name", FORMS)
def test_every_place_to_cut(name: str) -> None:
    """In two at every place, and what came before every place without the rest."""
    form = FORMS[name]
    assert form.calls is not None
    calls = CALLS_OF_ONE if form.calls.several else CALLS_OF_ONE[:1]
    tools = tools_of(calls)
    text = "Wait: " if form.calls.trigger else ""
    written = write_answer(form, text, calls, "Hm." if form.reasoning else "")
    whole = parse(form, written, tools)
    assert whole.read == [(call.name, dict(call.arguments)) for call in calls]
    for place in range(len(written) + 1):
        assert parse(form, [written[:place], written[place:]], tools) == whole
        cut = parse(form, written[:place], tools)
        assert cut == parse(form, list(written[:place]), tools)
        _check_beginning(cut, whole)


def _check_beginning(cut: Parsed, whole: Parsed) -> None:
    """What is told of a cut answer is the beginning of what is told of the whole one, or text of a marker."""
    for (name, arguments), (whole_name, whole_arguments) in zip(cut.calls, whole.calls, strict=False):
        assert name == whole_name
        assert json.loads(whole_arguments) or not arguments or arguments in whole_arguments
    assert len(cut.calls) <= len(whole.calls)
