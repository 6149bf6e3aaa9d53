"""Grammars of answers that call tools, by the syntax that the model writes calls in.

They are Lark: text up to the first marker of a call, if text is allowed at all, then calls of the tools by
their names with arguments that are JSON, or what the tool's schema says where calls are held to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manylora.adapters.format.answers.syntax import CallSyntax, Shape, Tags
from manylora.adapters.format.answers.values import is_text
from manylora.server.errors import RequestError
from manylora.server.grammars.schemas import SchemaRefused, prepare_schema
from manylora.server.grammars.spec import GrammarSpec
from manylora.server.grammars.texts import BLANKS, with_short_decimals

_GAP = r"GAP: /[ \n\r\t]{1,8}/"
_TEXT = "TEXT: /(?s:.*)/"
_ANY_KEY = r"/[^<>\"'= \n\r\t]{1,64}/"
_PARAM = "tools"


@dataclass(frozen=True, slots=True)
class CalledTool:
    """One tool as a grammar sees it."""

    name: str
    parameters: Mapping[str, Any] | None  # the schema of its arguments; None: it takes nothing
    strict: bool  # calls are held to it
    path: str  # of the schema in the request


def calls_grammar(
    syntax: CallSyntax,
    tools: Sequence[CalledTool],
    control: Mapping[str, int],
    *,
    required: bool,
    several: bool,
    content: Mapping[str, Any] | bool | None = None,
) -> GrammarSpec | None:
    """The grammar of answers that may call ``tools``, or have to; None where nothing is to be held to.

    Args:
        syntax: how calls are written.
        tools: those that may be called.
        control: the ids of control tokens by their texts.
        required: whether at least one is called, and nothing is said.
        several: whether there may be more calls than one.
        content: a prepared schema of what is said instead of calls; None: any text.

    Raises:
        RequestError: calls can't be held to the schema of a strict tool; names the place.
    """
    bare = not syntax.trigger
    if bare and not required and content is None and not any(tool.strict for tool in tools):
        return None
    writer = _Writer(syntax, control, several=several and syntax.several)
    return GrammarSpec.lark(writer.grammar(tools, required=required, content=content), param=_PARAM)


class _Writer:
    """Writes one grammar."""

    def __init__(self, syntax: CallSyntax, control: Mapping[str, int], *, several: bool) -> None:
        self._syntax = syntax
        self._control = sorted(control.items(), key=lambda item: -len(item[0]))
        self._several = several
        self._rules: list[str] = []

    def grammar(
        self, tools: Sequence[CalledTool], *, required: bool, content: Mapping[str, Any] | bool | None
    ) -> str:
        """The whole grammar."""
        body = " | ".join(f"call_{index}" for index in range(len(tools)))
        for index, tool in enumerate(tools):
            self._rules.append(f"call_{index}: {self._call(index, tool)}")
        if content is not None and not required:
            self._rules.append(f"content: {_json(content)}")
            start = f"start: content | {self._calls()}"
        else:
            start = f"start: {self._calls()}" if required else self._after_text()
        return "\n".join([start, f"body: {body}", *self._rules, _GAP, _TEXT])

    def _calls(self) -> str:
        """Calls from their first marker on."""
        syntax = self._syntax
        if not syntax.trigger:
            lead = f"({self._marker(syntax.optional)})?" if syntax.optional else ""
            return f"{lead} {self._run()}"
        return f"GAP? {' '.join(self._pieces(syntax.trigger))} {self._behind_trigger()}"

    def _behind_trigger(self) -> str:
        syntax = self._syntax
        rest = (syntax.begin + syntax.open).lstrip().removeprefix(syntax.trigger)
        return f"{self._marker(rest)} {self._run(opened=True)} {self._marker(syntax.end)}"

    def _after_text(self) -> str:
        """Text, or text up to calls."""
        if not self._syntax.trigger:
            return f"start: PLAIN? | {self._calls()}\nPLAIN: /[^{{ \\n\\r\\t](?s:.*)/"
        first, *others = self._pieces(self._syntax.trigger)
        calls = f"{' '.join(others)} {self._behind_trigger()}"
        if first.startswith("<["):
            return f"start: TEXT | TEXT {first} {calls}"
        return f"start: TEXT | lead {calls}\nlead[lazy]: TEXT {first}"

    def _run(self, *, opened: bool = False) -> str:
        """All calls; ``opened``: the first one's marker is written."""
        syntax = self._syntax
        close = self._marker(syntax.close)
        first = f"body {close}" if opened else f"{self._marker(syntax.open)} body {close}"
        if syntax.listed:
            more = f'(GAP? "," GAP? body {close})*' if self._several else ""
            return f'GAP? "[" GAP? {first} {more} GAP? "]"'
        if not self._several:
            return first
        return f"{first} ({self._marker(syntax.separator)} {self._marker(syntax.open)} body {close})*"

    def _call(self, index: int, tool: CalledTool) -> str:
        syntax = self._syntax
        if syntax.shape is Shape.TAGGED:
            assert syntax.tags is not None, "a tagged call has tags"
            return f"{self._exact(tool.name + syntax.name_end)} {self._tagged(index, tool, syntax.tags)}"
        self._rules.append(f"arguments_{index}: {_json(_arguments(tool))}")
        if syntax.shape is Shape.NAMED:
            if syntax.name_end[:1].isspace():
                return f"{_literal(tool.name)} {self._marker(syntax.name_end)} arguments_{index}"
            end = self._pieces(syntax.name_end.strip())
            if end and not end[0].startswith("<["):  # one lexeme: a name may begin another
                return (
                    f"{_literal(tool.name + json.loads(end[0]))} {' '.join(end[1:])} GAP? arguments_{index}"
                )
            return f"{_literal(tool.name)} {' '.join(end)} GAP? arguments_{index}"
        members = (
            f'{_key(syntax.name_key)} {_literal(json.dumps(tool.name))} GAP? "," GAP? '
            f"{_key(syntax.arguments_key)} arguments_{index}"
        )
        if syntax.wrap_key is None:
            return _object(members)
        return _object(f"{_key(syntax.wrap_key)} {_object(members)}")

    # Tags.

    def _tagged(self, index: int, tool: CalledTool, tags: Tags) -> str:
        """All arguments of a call."""
        end = self._pieces(tags.end)
        if end and not end[0].startswith("<["):
            self._rules.append(f"text_{index}[suffix={end[0]}]: /(?s:.*)/")
            text = f"text_{index} {' '.join(end[1:])}"
        else:
            text = f"TEXT {' '.join(end)}"
        if not tool.strict:
            if not (tool.parameters or {}).get("properties"):
                return ""
            self._rules.append(f"key_{index}: {_ANY_KEY}")
            return f"({self._exact(tags.open)} key_{index} {self._exact(tags.close)} {text})*"
        whole = _arguments(tool)
        parts = []
        for place, (name, schema) in enumerate(whole.get("properties", {}).items()):
            value = text
            if not is_text(schema):
                rule = f"value_{index}_{place}"
                definitions: dict[str, Any] = {
                    key: whole[key] for key in ("$defs", "definitions") if key in whole
                }
                self._rules.append(f"{rule}: {_json({**schema, **definitions})}")
                value = f"{rule} {' '.join(end)}"
            elif "enum" in schema:
                value = f"({' | '.join(map(_literal, schema['enum']))}) {' '.join(end)}"
            else:
                _check_text(schema, f"{tool.path}.properties.{name}")
            part = f"{self._exact(f'{tags.open}{name}{tags.close}')} {value}"
            parts.append(part if name in whole.get("required", ()) else f"({part})?")
        return " ".join(parts)

    # Texts.

    def _marker(self, marker: str) -> str:
        """A marker with or without space around it."""
        pieces = self._pieces(marker.strip())
        return f"GAP? {' '.join(pieces)} GAP?" if pieces else "GAP?" if marker else ""

    def _exact(self, text: str) -> str:
        return " ".join(self._pieces(text))

    def _pieces(self, text: str) -> list[str]:
        """``text`` as literals and control tokens."""
        if not text:
            return []
        found = min(
            ((place, known) for known in self._control if (place := text.find(known[0])) >= 0), default=None
        )
        if found is None:
            return [_literal(text)]
        place, (token, token_id) = found
        before = [_literal(text[:place])] if place else []
        return [*before, f"<[{token_id}]>", *self._pieces(text[place + len(token) :])]


def _check_text(schema: Mapping[str, Any], path: str) -> None:
    """Refuse what a text in tags can't be held to: it ends where its tag does."""
    bounded = next((key for key in schema if key in ("pattern", "format", "minLength", "maxLength")), None)
    if bounded is not None:
        raise RequestError(
            f"'{path}.{bounded}': this model's calls can't be held to this keyword", f"{path}.{bounded}"
        )


def _arguments(tool: CalledTool) -> dict[str, Any]:
    """The schema of a call's arguments."""
    if tool.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not tool.strict:
        return {"type": "object"}
    try:
        prepared, _ = prepare_schema({"type": "object", **tool.parameters}, closed=True)
    except SchemaRefused as refused:
        path = f"{tool.path}{refused.path}"
        raise RequestError(f"'{path}': {refused}", path) from None
    assert isinstance(prepared, dict), "an object's schema is one"
    return prepared


def _json(schema: Mapping[str, Any] | bool) -> str:
    """A schema as a rule."""
    said = dict(schema) if isinstance(schema, Mapping) else {}
    kept = {"x-guidance": {"whitespace_pattern": BLANKS}, **with_short_decimals(said)}
    return f"%json {json.dumps(kept)}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _key(name: str) -> str:
    return f'{_literal(json.dumps(name))} GAP? ":" GAP?'


def _object(members: str) -> str:
    return f'"{{" GAP? {members} GAP? "}}"'
