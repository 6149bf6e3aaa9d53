"""Formats that come with a tokenizer: transformers' ``response_template``, as far as it can be read here.

It describes the parts of an answer by the texts or patterns around them. Patterns of strangers are not run:
those that are texts with space between them are read as such, and any other makes the whole one unreadable,
which is told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from manylora.adapters.format.answers.syntax import (
    AnswerFormat,
    CallSyntax,
    ReasoningSyntax,
    Shape,
    Source,
    Tags,
)

_REASONING = ("reasoning_content", "thinking", "reasoning")
_MAX_MARKER = 200  # characters

# What a pattern may hold beside texts: space, and a named group of anything but what follows it.
_PART = re.compile(
    r"(?P<space>\\s[*+])|(?P<group>\(\?P<(?P<name>\w+)>(?:\[\^[^\]]{1,8}\][+*]|\.\*\?|\.\+\?|\\w\+)\))"
    r"|\\(?P<escaped>[^A-Za-z0-9])|(?P<line>\\n)|(?P<plain>[^\\.^$*+?{}\[\]()|])"
)


class Unreadable(Exception):
    """``str()`` says what of a response template can't be read."""


def read_response_template(spec: Any) -> AnswerFormat:
    """The format that a ``response_template`` describes.

    Raises:
        Unreadable: something of it has no place in a format here.
    """
    fields = spec.get("fields") if isinstance(spec, Mapping) else None
    if not isinstance(fields, Mapping) or not all(isinstance(each, Mapping) for each in fields.values()):
        raise Unreadable("it has no fields")
    if spec.get("version", 1) != 1:
        raise Unreadable(f"its version is {spec.get('version')!r:.20}")
    thought = next((fields[name] for name in _REASONING if name in fields), None)
    calls = fields.get("tool_calls")
    return AnswerFormat(
        None if calls is None else _calls(calls),
        None if thought is None else ReasoningSyntax(_text(thought, "open"), _text(thought, "close")),
        Source.RESPONSE_TEMPLATE,
    )


def _calls(field: Mapping[str, Any]) -> CallSyntax:
    opens, close = _pieces(field, "open"), _text(field, "close", needed=False)
    several = field.get("repeats") is True or field.get("transform_each") is True
    content, options = field.get("content", "text"), field.get("content_args", {})
    named = "name" in opens
    if content == "json":
        if options:
            raise Unreadable("its calls are written in a dialect of JSON")
        if named:
            before, after = _around(opens, "name")
            _check_transform(field, "{name}", "{content}")
            return CallSyntax(Shape.NAMED, open=before, name_end=after, close=close, several=several)
        return _object(field, "".join(opens), close, several=several)
    if content == "xml-inline" and named:
        before, after = _around(opens, "name")
        _check_transform(field, "{name}", "{content}")
        tags = _tags(options)
        return CallSyntax(Shape.TAGGED, open=before, name_end=after, close=close, tags=tags, several=several)
    raise Unreadable(f"its calls are of the kind {content!r:.40}")


def _object(field: Mapping[str, Any], opens: str, close: str, *, several: bool) -> CallSyntax:
    """Calls that are objects: where their name and arguments stand is for the transform to say."""
    function = _function(field)
    listed = field.get("transform_each") is True
    root = "" if listed else "content."
    if function in ("{content}", "{function}"):
        name_key, arguments_key = "name", "arguments"
        wrap = "function" if function == "{function}" else None
    elif isinstance(function, Mapping):
        name_key = _placeholder(function.get("name"), root)
        arguments_key = _placeholder(function.get("arguments"), root)
        wrap = None
    elif field.get("transform") is None or field.get("transform") == "{content}":
        name_key, arguments_key, wrap = "name", "arguments", "function"  # as OpenAI writes calls
    else:
        raise Unreadable("its calls are rearranged in a way that is not known")
    if listed:
        return CallSyntax(
            Shape.OBJECT,
            begin=opens,
            end=close,
            separator=", ",
            listed=True,
            name_key=name_key,
            arguments_key=arguments_key,
            wrap_key=wrap,
        )
    return CallSyntax(
        Shape.OBJECT,
        open=opens,
        close=close,
        separator="\n" if several else "",
        name_key=name_key,
        arguments_key=arguments_key,
        wrap_key=wrap,
        several=several,
    )


def _function(field: Mapping[str, Any]) -> Any:
    transform = field.get("transform")
    return transform.get("function") if isinstance(transform, Mapping) else None


def _check_transform(field: Mapping[str, Any], name: str, arguments: str) -> None:
    function = _function(field)
    if not isinstance(function, Mapping) or dict(function) != {"name": name, "arguments": arguments}:
        raise Unreadable("its calls are rearranged in a way that is not known")


def _placeholder(value: Any, root: str) -> str:
    found = re.fullmatch(rf"\{{{re.escape(root)}(\w+)\}}", value) if isinstance(value, str) else None
    if found is None:
        raise Unreadable("its calls are rearranged in a way that is not known")
    return found[1]


def _tags(options: Any) -> Tags:
    pattern = options.get("tag_pattern") if isinstance(options, Mapping) else None
    if not isinstance(pattern, str) or set(options) != {"tag_pattern"}:
        raise Unreadable("the arguments of its calls are written in an unknown way")
    pieces = _parts(pattern)
    if [piece for piece in pieces if piece in ("key", "value")] != ["key", "value"]:
        raise Unreadable("the arguments of its calls are written in an unknown way")
    key, value = pieces.index("key"), pieces.index("value")
    parts = ("".join(pieces[:key]), "".join(pieces[key + 1 : value]), "".join(pieces[value + 1 :]))
    if not all(part.strip() for part in parts):
        raise Unreadable("the arguments of its calls have no markers")
    return Tags(*parts)


def _around(pieces: list[str], name: str) -> tuple[str, str]:
    place = pieces.index(name)
    return "".join(pieces[:place]), "".join(pieces[place + 1 :])


def _text(field: Mapping[str, Any], key: str, *, needed: bool = True) -> str:
    """One marker as text."""
    if field.get(key) is None and field.get(f"{key}_pattern") is None and not needed:
        return ""
    text = "".join(_pieces(field, key))
    if needed and not text.strip():
        raise Unreadable(f"a part has no {key!r}")
    return text


def _pieces(field: Mapping[str, Any], key: str) -> list[str]:
    """One marker: texts, and the names of what stands between them."""
    literal, pattern = field.get(key), field.get(f"{key}_pattern")
    if isinstance(literal, list):
        literal = literal[0] if len(literal) == 1 else None
    if isinstance(literal, str) and pattern is None:
        pieces = [literal]
    elif isinstance(pattern, str) and literal is None:
        pieces = _parts(pattern)
    else:
        raise Unreadable(f"a part has no single {key!r}")
    if sum(map(len, pieces)) > _MAX_MARKER:
        raise Unreadable("a marker is too long")
    return pieces


def _parts(pattern: str) -> list[str]:
    """A pattern as texts and names of groups; space that may be missing becomes a line break."""
    pieces: list[str] = [""]
    place = 0
    while place < len(pattern):
        part = _PART.match(pattern, place)
        if part is None:
            raise Unreadable(f"the pattern {pattern[:60]!r} is more than texts")
        place = part.end()
        if part["group"]:
            pieces += [part["name"], ""]
        elif part["space"]:
            pieces[-1] += "\n"
        else:
            pieces[-1] += "\n" if part["line"] else part["escaped"] or part["plain"]
    return [piece for piece in pieces if piece]
