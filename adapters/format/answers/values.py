"""Values of arguments that are written as plain text: what they are is for the tool's schema to say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Properties = Mapping[str, Any]  # the schemas of a tool's arguments by name

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "object": dict,
    "array": list,
    "string": str,
}
_WORDS = {"True": True, "False": False, "None": None}  # that models write for JSON's
_MAX_DEPTH = 8  # of schemas within schemas


def is_text(schema: Any) -> bool:
    """Whether a value of ``schema`` can be nothing but a text."""
    return types_of(schema) == {"string"}


def value_of(text: str, schema: Any) -> Any:
    """What ``text`` means where ``schema`` describes the value: JSON, or the text itself."""
    types = types_of(schema)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text if "string" in types else _WORDS.get(text.strip(), text)
    if "string" in types:
        others = types - {"string"}
        return value if any(_is(value, kind) for kind in others) else text
    return value


def types_of(schema: Any, depth: int = 0) -> set[str]:
    """The types of JSON that ``schema`` names; none where it doesn't say."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return set()
    declared = schema.get("type")
    types = {declared} if isinstance(declared, str) else set()
    if isinstance(declared, list):
        types.update(kind for kind in declared if isinstance(kind, str))
    for choice in ("anyOf", "oneOf"):
        choices = schema.get(choice)
        for each in choices if isinstance(choices, list) else ():
            types |= types_of(each, depth + 1)
    if not types and isinstance(schema.get("enum"), list):
        types = {_kind(value) for value in schema["enum"]}
    if not types and "const" in schema:
        types = {_kind(schema["const"])}
    return types


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _KINDS.get(kind, ()))


def _kind(value: Any) -> str:
    return next(kind for kind in _KINDS if _is(value, kind))
