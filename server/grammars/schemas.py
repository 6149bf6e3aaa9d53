"""Which JSON schemas an answer can be held to, and what keeps others from it. Knows nothing but JSON.

The grammar library reads draft 2020-12 and refuses what it has no grammar for; it names neither the place nor
always the keyword, and a few things it takes and does not quite keep. Here every schema is walked first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_MAX_DEPTH = 64  # of schemas inside of schemas
_EXACT = 2**53  # integers beyond are rounded to a float by the grammar library

# Keywords of the standard that say nothing about what is valid, and that the library would stumble over.
_ANNOTATIONS = frozenset(
    {"deprecated", "$vocabulary", "contentSchema", "$dynamicAnchor", "$recursiveAnchor", "x-guidance"}
)
_NOT_KEPT = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    }
)
_FORMATS = frozenset(
    {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"}
)
_OTHER_FORMATS = frozenset(  # of the standard; any other is a note that nothing checks
    {
        "idn-email",
        "idn-hostname",
        "iri",
        "iri-reference",
        "json-pointer",
        "regex",
        "relative-json-pointer",
        "uri-reference",
        "uri-template",
    }
)
_ONE = ("additionalItems", "additionalProperties", "items")
_LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "patternProperties", "properties")
_VALUES = ("const", "enum", "exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf")


class SchemaRefused(Exception):
    """A schema that an answer can't be held to. ``str()`` is a clause; ``path`` ends in the keyword."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def prepare_schema(schema: Any, *, closed: bool = False, lenient: bool = False) -> tuple[Any, list[str]]:
    """A schema of the same meaning that the grammar library reads, and the paths of what is left out of it.

    Args:
        schema: as the client sent it; not changed.
        closed: whether objects that name properties have no others, where they don't say so themselves.
        lenient: whether keywords that can't be kept are left out instead of refused.

    Raises:
        SchemaRefused: a keyword can't be kept, or has a value that it can't have.
    """
    left_out: list[str] = []

    def refuse(message: str, path: str) -> None:
        if not lenient:
            raise SchemaRefused(message, path)
        left_out.append(path)

    return _Walk(refuse, closed).schema(schema, "", 0), left_out


def subschemas(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each schema inside of ``schema`` with its path, itself first, the others after what they stand in."""
    yield path, schema
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _ONE and isinstance(value, dict | bool):
            yield from subschemas(value, f"{path}.{key}")
        elif key in _LISTS and isinstance(value, list):
            for index, each in enumerate(value):
                yield from subschemas(each, f"{path}.{key}[{index}]")
        elif key in _NAMED and isinstance(value, dict):
            for name, each in value.items():
                yield from subschemas(each, f"{path}.{key}.{name}")


_Refuse = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class _Walk:
    refuse: _Refuse
    closed: bool

    def schema(self, schema: Any, path: str, depth: int) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise SchemaRefused("a schema is an object or a boolean", path)
        if depth > _MAX_DEPTH:
            raise SchemaRefused(f"schemas stand more than {_MAX_DEPTH} deep inside each other", path)
        kept = {}
        for key, value in schema.items():
            where = f"{path}.{key}"
            if key in _NOT_KEPT:
                if not _says_nothing(schema, key):
                    self.refuse("answers can't be held to this keyword", where)
            elif key not in _ANNOTATIONS and _is_kept(schema, key, where, self.refuse):
                kept[key] = self._inside(key, value, where, depth + 1)
        names = "properties" in schema or "patternProperties" in schema
        if _closes(schema) or (self.closed and names and "additionalProperties" not in schema):
            kept["additionalProperties"] = False
        return kept

    def _inside(self, key: str, value: Any, path: str, depth: int) -> Any:
        """The value of a keyword that is kept, with the schemas in it prepared."""
        if key in _LISTS and isinstance(value, list):
            return [self.schema(each, f"{path}[{i}]", depth) for i, each in enumerate(value)]
        if key in _ONE:
            return self.schema(value, path, depth)
        if key in _NAMED:
            if not isinstance(value, dict):
                raise SchemaRefused("must be an object of schemas", path)
            return {name: self.schema(each, f"{path}.{name}", depth) for name, each in value.items()}
        return value


# What makes a keyword mean something: without any of these beside it, it says nothing.
_PARTNERS = {
    "if": ("then", "else"),
    "then": ("if",),
    "else": ("if",),
    "minContains": ("contains",),
    "maxContains": ("contains",),
}


def _says_nothing(schema: dict[str, Any], key: str) -> bool:
    """Whether a keyword that can't be kept asks for nothing that is not so anyway."""
    value = schema[key]
    if key in _PARTNERS:
        return not any(partner in schema for partner in _PARTNERS[key])
    if key == "uniqueItems":
        most = schema.get("maxItems")
        return value is False or (isinstance(most, int) and most <= 1)
    if key in ("dependencies", "dependentRequired", "dependentSchemas"):
        return bool(value == {})
    if key in ("propertyNames", "unevaluatedItems", "unevaluatedProperties"):
        return value is True or value == {} or (key == "unevaluatedProperties" and _closes(schema))
    return False


def _closes(schema: dict[str, Any]) -> bool:
    """Whether ``unevaluatedProperties`` is false and means the same as ``additionalProperties``."""
    others = ("$ref", "additionalProperties", "allOf", "anyOf", "else", "if", "oneOf", "then")
    return schema.get("unevaluatedProperties") is False and not any(key in schema for key in others)


def _is_kept(schema: dict[str, Any], key: str, path: str, refuse: _Refuse) -> bool:
    """Whether a keyword that the library knows goes to it; tells of those that it would not quite keep."""
    if key == "format" and schema[key] not in (*_FORMATS, *_OTHER_FORMATS):
        return False
    objection = _objection(schema, key)
    if objection is not None:
        refuse(objection, path)
    return objection is None


def _objection(schema: dict[str, Any], key: str) -> str | None:
    """Why a keyword is not kept although the library takes it, or in words that it has not."""
    value = schema[key]
    if key == "format" and value in _OTHER_FORMATS:
        return f"answers can't be held to the format {value!r}"
    if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
        return "only what is in the schema itself can be referred to"
    if key in _VALUES and _is_rounded(value):
        return "integers beyond 2^53 can't be told apart"
    if key == "minProperties" and _needs_distinct_names(schema):
        return "names that are free may repeat, so they can't be counted"
    if key == "patternProperties" and isinstance(value, dict):
        name = _name_with_two_schemas(schema)
        return None if name is None else f"{name!r} has a schema of its own and one by its pattern"
    return None


def _is_rounded(value: Any) -> bool:
    """Whether an integer in a JSON value is changed where it becomes a float."""
    if isinstance(value, int):
        return abs(value) > _EXACT and int(float(value)) != value if abs(value) < 10**300 else True
    if isinstance(value, list):
        return any(map(_is_rounded, value))
    return isinstance(value, dict) and any(map(_is_rounded, value.values()))


def _needs_distinct_names(schema: dict[str, Any]) -> bool:
    """Whether more than one property has to be there that has a name of the model's choice."""
    least, required = schema["minProperties"], schema.get("required", [])
    if not isinstance(least, int) or not isinstance(required, list):
        return False
    return schema.get("additionalProperties") is not False and least > len(required) + 1


def _name_with_two_schemas(schema: dict[str, Any]) -> str | None:
    properties = schema.get("properties")
    for pattern in schema["patternProperties"]:
        try:
            search = re.compile(pattern).search
        except re.error:
            continue  # the library reads another dialect, and says what it can't read
        for name in properties if isinstance(properties, dict) else ():
            if search(name):
                return str(name)
    return None
