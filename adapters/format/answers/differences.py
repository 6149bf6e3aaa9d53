"""Formats told from what a chat template writes: with calls and without, with one and with two.

What a template writes for a call of the sample is taken apart at the sample's own name and arguments; what is
left are the markers. What comes out is tried on another rendering before it counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from manylora.adapters.format.answers.events import Arguments, CallBegins
from manylora.adapters.format.answers.parser import AnswerParser
from manylora.adapters.format.answers.samples import KEY, NAMES, SAID, THOUGHT, VALUES
from manylora.adapters.format.answers.syntax import (
    AnswerFormat,
    CallSyntax,
    IdForm,
    ReasoningSyntax,
    Shape,
    Tags,
)

Renderings = Mapping[str, str | None]
Found = tuple[CallSyntax, str, str]  # a call, with what stands before and after it

_MAX_MARKER = 200  # characters
_REASONING = re.compile("think|thought|reason", re.IGNORECASE)  # a word of every marker of reasoning
_QUOTED = re.compile(r"[{}']")  # a value that is a part of something else


def derive_calls(renderings: Renderings) -> CallSyntax | None:
    """How calls are written, if the renderings tell."""
    one = _turn(renderings, "one")
    if one is None:
        return None
    read = next((read for read in (_object, _named, _tagged) if read(one) is not None), None)
    found = None if read is None else read(one)
    if read is None or found is None:
        return None
    two = _turn(renderings, "two")
    first = None if two is None else read(two)
    second = None if first is None else read(first[2], 1)
    syntax = _split(*found, None if second is None else second[1])
    if renderings.get("long") is None:
        syntax = replace(syntax, ids=IdForm.NINE)
    return syntax if _holds(syntax, renderings) else None


def derive_reasoning(renderings: Renderings) -> ReasoningSyntax | None:
    """The markers around reasoning, if the template writes that of an answer."""
    thought = renderings.get("thought")
    begin = -1 if thought is None else thought.find(THOUGHT)
    if thought is None or begin < 0:
        return None
    place = thought.find(SAID, begin)
    opens = _last_word(thought[:begin])
    closes = thought[begin + len(THOUGHT) : place].strip()
    if place < 0 or not closes or not _REASONING.search(opens) or len(opens + closes) > _MAX_MARKER:
        return None
    return ReasoningSyntax(opens, closes)


def _last_word(text: str) -> str:
    """The marker that ``text`` ends with: from its last opening bracket on."""
    line = text.rstrip().rpartition("\n")[2]
    place = max(line.rfind("<"), line.rfind("["))
    return line[place:] if place >= 0 else line


def _turn(renderings: Renderings, name: str) -> str | None:
    """What a model is to write for the assistant's turn of a rendering, its end left out."""
    whole, prompt, said = renderings.get(name), renderings.get("prompt"), renderings.get("said_tools")
    if whole is None or prompt is None or said is None or SAID not in said:
        return None
    # What the turn begins with anyway, an empty block of reasoning for one, is no part of a call.
    start = max(len(_common(whole, each)) for each in (prompt, said[: said.rfind(SAID)]))
    turn = whole[start:]
    after = said[said.rfind(SAID) + len(SAID) :]
    shared = len(_common(turn[::-1], after[::-1]))
    return turn[: len(turn) - shared]


def _object(turn: str, index: int = 0) -> Found | None:
    """A call that is one object: the outermost one with its name and arguments in it."""
    name, outermost = turn.find(NAMES[index]), None
    for start in (place for place in range(name, -1, -1) if turn[place] == "{"):
        found = _decoded(turn, start)
        keys = None if found is None else _keys(found[0], index)
        if found is not None and keys is not None:
            wrap, name_key, arguments_key = keys
            syntax = CallSyntax(Shape.OBJECT, name_key=name_key, arguments_key=arguments_key, wrap_key=wrap)
            outermost = (syntax, turn[:start], turn[found[1] :])
    return outermost


def _named(turn: str, index: int = 0) -> Found | None:
    """A call whose name stands before its arguments."""
    name = turn.find(NAMES[index])
    start = turn.find("{", name)
    found = _decoded(turn, start) if name >= 0 and start >= 0 else None
    if found is None or found[0] != {KEY: VALUES[index]}:
        return None
    end = turn[name + len(NAMES[index]) : start]
    return CallSyntax(Shape.NAMED, name_end=end), turn[:name], turn[found[1] :]


def _tagged(turn: str, index: int = 0) -> Found | None:
    """A call whose arguments stand in markers of their own."""
    name = turn.find(NAMES[index])
    key = turn.find(KEY, name)
    value = turn.find(VALUES[index], key)
    if not 0 <= name < key < value:
        return None
    before_key = turn[name + len(NAMES[index]) : key]
    place = before_key.rfind("<")
    after = turn[value + len(VALUES[index]) :]
    close = after.find(">") + 1
    close += after[close : close + 1] == "\n"
    tags = Tags(before_key[max(place, 0) :], turn[key + len(KEY) : value], after[:close])
    if place < 0 or not close or _QUOTED.search(f"{tags.open}{tags.close}{tags.end}"):
        return None
    return CallSyntax(Shape.TAGGED, name_end=before_key[:place], tags=tags), turn[:name], after[close:]


def _common(text: str, other: str) -> str:
    """What two texts begin with, both of them."""
    size = 0
    while size < min(len(text), len(other)) and text[size] == other[size]:
        size += 1
    return text[:size]


def _decoded(text: str, start: int) -> tuple[Any, int] | None:
    """The JSON that begins at ``start``, and where it ends."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None


def _keys(value: Any, index: int) -> tuple[str | None, str, str] | None:
    """Under which keys an object holds the sample's name and arguments: (around both, name, arguments)."""
    if not isinstance(value, dict):
        return None
    name = next((key for key, each in value.items() if each == NAMES[index]), None)
    arguments = next((key for key, each in value.items() if _are_arguments(each, index)), None)
    if name is not None and arguments is not None:
        return None, name, arguments
    for key, each in value.items():
        inner = _keys(each, index) if isinstance(each, dict) else None
        if inner is not None and inner[0] is None:
            return key, inner[1], inner[2]
    return None


def _are_arguments(value: Any, index: int) -> bool:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return False
    return bool(value == {KEY: VALUES[index]})


def _split(syntax: CallSyntax, before: str, after: str, between: str | None) -> CallSyntax:
    """The markers around all calls and around each, from what stands before, after and between them."""
    before = before.lstrip()
    if before.rstrip().endswith("[") and after.lstrip().startswith("]"):
        begin = before.rstrip()[:-1]
        separator = ", " if between is None else between
        return replace(
            syntax,
            begin=begin,
            end=after.lstrip()[1:].rstrip(),
            listed=True,
            separator=separator,
            several=between is not None,
        )
    if between is None:
        return replace(syntax, open=before, close=after.rstrip(), several=False)
    close = _common(between, after)
    rest = between[len(close) :]
    opens = _common(rest[::-1], before[::-1])[::-1]
    return replace(
        syntax,
        begin=before[: len(before) - len(opens)],
        end=after[len(close) :].rstrip(),
        open=opens,
        close=close,
        separator=rest[: len(rest) - len(opens)],
    )


def _holds(syntax: CallSyntax, renderings: Renderings) -> bool:
    """Whether the syntax reads what the template writes, after a text as well."""
    if any(len(marker) > _MAX_MARKER for marker in syntax.markers):
        return False
    if not syntax.trigger and syntax.shape is not Shape.OBJECT:
        return False  # nothing tells a call from text
    for name, count in (("one", 1), ("said_one", 1), ("two", 2), ("said_two", 2)):
        turn = _turn(renderings, name)
        if turn is None or (name.startswith("said") and SAID not in turn):
            continue
        if not syntax.trigger and name.startswith("said"):
            continue  # a call without a marker can only begin an answer
        if count == 2 and not syntax.several:
            continue
        if _read(syntax, turn) != [(NAMES[i], {KEY: VALUES[i]}) for i in range(count)]:
            return False
    return True


def _read(syntax: CallSyntax, turn: str) -> list[tuple[str, Any]] | None:
    properties = {KEY: {"type": "string"}}
    parser = AnswerParser(AnswerFormat(syntax), dict.fromkeys(NAMES, properties))
    names, arguments = [], [""] * len(NAMES)
    for event in [*parser.feed(turn), *parser.finish()]:
        if isinstance(event, CallBegins):
            names.append(event.name)
        elif isinstance(event, Arguments) and event.index < len(arguments):
            arguments[event.index] += event.text
    try:
        return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=False)]
    except ValueError:
        return None
