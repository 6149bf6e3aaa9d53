"""JSON schemas over every keyword: those that answers are held to, and those that are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

S: dict[str, Any] = {"type": "string"}
I: dict[str, Any] = {"type": "integer"}  # noqa: E741
SHORT: dict[str, Any] = {"type": "string", "maxLength": 4}


@dataclass(frozen=True)
class Kept:
    """A schema, and instances that are valid by it, their properties in the order of the schema."""

    name: str
    schema: Any
    valid: tuple[Any, ...]


def obj(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    wanted = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": wanted, **more}


def closed(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return obj(properties, required, additionalProperties=False, **more)


_TREE = {
    "$defs": {
        "node": closed(
            {"name": SHORT, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
            ["name"],
        )
    },
    "$ref": "#/$defs/node",
}

KEPT: tuple[Kept, ...] = (
    # type
    Kept("string", S, ("", "a b", 'quote " backslash \\ line \n', "é ☃ 😀")),
    Kept("integer", I, (0, -7, 123456)),
    Kept("number", {"type": "number"}, (0, -1.5, 2e5, 12)),
    Kept("boolean", {"type": "boolean"}, (True, False)),
    Kept("null", {"type": "null"}, (None,)),
    Kept("array", {"type": "array"}, ([], [1, "a", None, {"b": []}])),
    Kept("object", {"type": "object"}, ({}, {"a": 1, "b": {"c": [True]}})),
    Kept("several types", {"type": ["string", "null"]}, ("x", None)),
    Kept("integer or array", {"type": ["integer", "array"], "maxItems": 1}, (3, [], ["x"])),
    Kept("anything", {}, (1, "a", [None], {"k": False})),
    Kept("true", True, (0, {"a": []})),
    # const, enum
    Kept("const string", {"const": "yes"}, ("yes",)),
    Kept("const number", {"const": 12}, (12,)),
    Kept("const object", {"const": {"a": [1, None], "b": "c"}}, ({"a": [1, None], "b": "c"},)),
    Kept("enum strings", {"enum": ["red", "green", "dark green"]}, ("red", "dark green")),
    Kept("enum mixed", {"enum": [1, "one", None, True, [1]]}, (1, "one", None, True, [1])),
    Kept("enum of a type", {"type": "string", "enum": ["a", "b\n", 'c"']}, ("a", "b\n", 'c"')),
    Kept("const with escapes", {"const": "tab\tslash/back\\"}, ("tab\tslash/back\\",)),
    # strings
    Kept("minLength", {"type": "string", "minLength": 3}, ("abc", "ééé☃")),
    Kept("maxLength", {"type": "string", "maxLength": 5}, ("", "12345", "😀😀")),
    Kept("both lengths", {"type": "string", "minLength": 2, "maxLength": 2}, ("ab", "☃☃")),
    Kept("pattern", {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}, ("AB-123",)),
    Kept("pattern inside", {"type": "string", "pattern": "b+", "maxLength": 6}, ("abc", "bb")),
    Kept("pattern with classes", {"type": "string", "pattern": r"^\d+\w?$", "maxLength": 5}, ("12", "3x")),
    Kept(
        "pattern and lengths",
        {"type": "string", "pattern": "^[ab]*$", "minLength": 2, "maxLength": 4},
        ("abba",),
    ),
    Kept("pattern of alternatives", {"type": "string", "pattern": "^(foo|ba[rz])$"}, ("foo", "baz")),
    Kept("date", {"type": "string", "format": "date"}, ("2026-11-29", "2024-02-29")),
    Kept("time", {"type": "string", "format": "time"}, ("12:30:00Z", "01:02:03.5+01:00")),
    Kept("date-time", {"type": "string", "format": "date-time"}, ("2026-11-29T12:30:00Z",)),
    Kept("duration", {"type": "string", "format": "duration"}, ("P1DT12H", "PT5M")),
    Kept("email", {"type": "string", "format": "email"}, ("a.b@example.org",)),
    Kept("hostname", {"type": "string", "format": "hostname"}, ("www.example.org",)),
    Kept("ipv4", {"type": "string", "format": "ipv4"}, ("192.168.0.1",)),
    Kept("ipv6", {"type": "string", "format": "ipv6"}, ("2001:db8::1", "::1")),
    Kept("uuid", {"type": "string", "format": "uuid"}, ("123e4567-e89b-12d3-a456-426614174000",)),
    Kept("uri", {"type": "string", "format": "uri"}, ("https://example.org/a?b=c#d",)),
    Kept("a format of its own", {"type": "string", "format": "colour", "maxLength": 3}, ("red",)),
    # numbers
    Kept("minimum", {"type": "integer", "minimum": 3}, (3, 4, 1000)),
    Kept("maximum", {"type": "integer", "maximum": -3}, (-3, -1000)),
    Kept("range", {"type": "integer", "minimum": -12, "maximum": 105}, (-12, 0, 9, 99, 105)),
    Kept("exclusive", {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, (1, 2)),
    Kept("number range", {"type": "number", "minimum": 0.5, "maximum": 2.25}, (0.5, 1, 2.25)),
    Kept("number exclusive", {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, (0.5, 0.001)),
    Kept("multipleOf", {"type": "integer", "multipleOf": 7}, (0, 7, 14, -21)),
    Kept("multipleOf in a range", {"type": "integer", "multipleOf": 5, "minimum": 1, "maximum": 20}, (5, 20)),
    Kept(
        "multipleOf of decimals",
        {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 2},
        (0.25, 1.75, 1.5, 0, 2.0),
    ),
    # arrays
    Kept("items", {"type": "array", "items": I, "maxItems": 4}, ([], [1, 2, 3])),
    Kept(
        "minItems",
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
        ([True, False],),
    ),
    Kept("no items", {"type": "array", "maxItems": 0}, ([],)),
    Kept(
        "prefixItems",
        {"type": "array", "prefixItems": [I, SHORT], "items": False, "minItems": 2},
        ([1, "a"],),
    ),
    Kept(
        "prefixItems and more",
        {"type": "array", "prefixItems": [I], "items": SHORT, "maxItems": 3},
        ([1, "a", "b"],),
    ),
    Kept(
        "arrays of arrays",
        {"type": "array", "items": {"type": "array", "items": I, "maxItems": 2}, "maxItems": 2},
        ([[1], []],),
    ),
    Kept("uniqueItems of one", {"type": "array", "items": I, "uniqueItems": True, "maxItems": 1}, ([], [4])),
    Kept("uniqueItems false", {"type": "array", "items": I, "uniqueItems": False, "maxItems": 2}, ([4, 4],)),
    # objects
    Kept("properties", closed({"a": I, "b": SHORT}), ({"a": 1, "b": "x"},)),
    Kept("optional", closed({"a": I, "b": SHORT, "c": I}, ["b"]), ({"b": ""}, {"a": 1, "b": "x", "c": 2})),
    Kept("all optional", closed({"a": I, "b": I}, []), ({}, {"b": 1}, {"a": 1, "b": 2})),
    Kept("open", obj({"a": I}), ({"a": 1}, {"a": 1, "more": [None]})),
    Kept("additionalProperties", {"type": "object", "additionalProperties": I}, ({}, {"x": 1, "y": 2})),
    Kept(
        "patternProperties",
        {"type": "object", "patternProperties": {"^n_[a-z]{1,3}$": I}, "additionalProperties": False},
        ({}, {"n_a": 1, "n_bc": 2}),
    ),
    Kept(
        "patternProperties beside",
        {
            "type": "object",
            "properties": {"id": I},
            "required": ["id"],
            "patternProperties": {"^s_": SHORT},
            "additionalProperties": {"type": "boolean"},
        },
        ({"id": 1, "s_a": "x", "other": True},),
    ),
    Kept(
        "required only",
        {"type": "object", "required": ["a"], "additionalProperties": I},
        ({"a": 1}, {"a": 1, "b": 2}),
    ),
    Kept(
        "minProperties 1",
        {"type": "object", "additionalProperties": I, "minProperties": 1, "maxProperties": 2},
        ({"a": 1}, {"a": 1, "b": 2}),
    ),
    Kept(
        "maxProperties",
        {"type": "object", "additionalProperties": SHORT, "maxProperties": 2},
        ({}, {"a": "", "b": "x"}),
    ),
    Kept(
        "one of them", closed({"a": I, "b": I}, [], minProperties=1), ({"a": 1}, {"b": 1}, {"a": 1, "b": 2})
    ),
    Kept("closed by unevaluated", obj({"a": I}, unevaluatedProperties=False), ({"a": 1},)),
    Kept("names with escapes", closed({'a "b"\n': I, "é☃": I}), ({'a "b"\n': 1, "é☃": 2},)),
    Kept(
        "nested",
        closed({"u": closed({"n": SHORT, "tags": {"type": "array", "items": SHORT, "maxItems": 2}})}),
        ({"u": {"n": "x", "tags": ["a", "b"]}},),
    ),
    Kept(
        "many properties",
        closed({f"p{i}": {"enum": [i]} for i in range(30)}),
        ({f"p{i}": i for i in range(30)},),
    ),
    Kept(
        "many optional", closed({f"p{i}": {"enum": [i]} for i in range(30)}, []), ({"p3": 3, "p17": 17}, {})
    ),
    # combinations
    Kept("anyOf", {"anyOf": [I, SHORT, {"type": "null"}]}, (1, "x", None)),
    Kept("anyOf of objects", {"anyOf": [closed({"a": I}), closed({"b": SHORT})]}, ({"a": 1}, {"b": "x"})),
    Kept(
        "anyOf beside",
        {
            "type": "object",
            "properties": {"k": S},
            "anyOf": [{"properties": {"k": {"maxLength": 2}}}, {"properties": {"k": {"const": "long one"}}}],
            "required": ["k"],
            "additionalProperties": False,
        },
        ({"k": "ab"}, {"k": "long one"}),
    ),
    Kept("allOf", {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]}, (3, 9)),
    Kept("allOf of objects", {"allOf": [obj({"a": I}), obj({"b": SHORT})]}, ({"a": 1, "b": "x"},)),
    Kept(
        "allOf of lengths", {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 3}]}, ("ab", "abc")
    ),
    Kept("oneOf of types", {"oneOf": [I, SHORT, {"type": "array", "maxItems": 0}]}, (1, "a", [])),
    Kept(
        "oneOf by a mark",
        {
            "oneOf": [
                closed({"kind": {"const": "cat"}, "lives": I}),
                closed({"kind": {"const": "dog"}, "legs": I}),
            ]
        },
        ({"kind": "cat", "lives": 9}, {"kind": "dog", "legs": 4}),
    ),
    Kept("oneOf of one", {"oneOf": [SHORT]}, ("abcd",)),
    Kept("false beside", closed({"a": I, "b": False}, ["a"]), ({"a": 1},)),
    # references
    Kept(
        "$ref",
        {"$defs": {"id": {"type": "integer", "minimum": 1}}, **closed({"a": {"$ref": "#/$defs/id"}})},
        ({"a": 5},),
    ),
    Kept(
        "definitions",
        {"definitions": {"id": SHORT}, "type": "array", "items": {"$ref": "#/definitions/id"}, "maxItems": 2},
        (["a"],),
    ),
    Kept("a tree", _TREE, ({"name": "a"}, {"name": "a", "children": [{"name": "b", "children": []}]})),
    Kept(
        "$ref to the root",
        closed({"v": I, "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}),
        ({"v": 1, "next": {"v": 2, "next": None}},),
    ),
    Kept(
        "$ref to a property", closed({"a": SHORT, "b": {"$ref": "#/properties/a"}}), ({"a": "x", "b": "y"},)
    ),
    Kept(
        "$ref with siblings",
        {"$defs": {"n": I}, **closed({"a": {"$ref": "#/$defs/n", "minimum": 4}})},
        ({"a": 4},),
    ),
    Kept("escaped reference", {"$defs": {"a/b": I}, **closed({"a": {"$ref": "#/$defs/a~1b"}})}, ({"a": 4},)),
    Kept(
        "$anchor",
        {"$defs": {"n": {"$anchor": "num", "type": "integer"}}, **closed({"a": {"$ref": "#num"}})},
        ({"a": 4},),
    ),
    # notes
    Kept(
        "annotations",
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "https://example.org/s",
            "$comment": "c",
            "title": "t",
            "description": "d",
            "default": 3,
            "examples": [1],
            "readOnly": True,
            "deprecated": True,
            "type": "integer",
        },
        (4,),
    ),
    Kept("unknown keywords", {"type": "integer", "x-order": 3, "nullable": True, "enumNames": ["a"]}, (4,)),
    Kept(
        "content",
        {
            "type": "string",
            "contentMediaType": "text/plain",
            "contentEncoding": "base64",
            "contentSchema": S,
            "maxLength": 4,
        },
        ("YQ==",),
    ),
    Kept(
        "keywords as names",
        closed({"type": I, "not": SHORT, "if": I, "$ref": I}),
        ({"type": 1, "not": "x", "if": 2, "$ref": 3},),
    ),
    Kept("keywords without their partner", {"type": "integer", "then": False, "minContains": 3}, (4,)),
    Kept("contains on a number", {"type": "integer", "minContains": 0}, (4,)),
    Kept(
        "x-guidance of a stranger",
        {"x-guidance": {"lenient": True, "whitespace_pattern": "x"}, **closed({"a": I})},
        ({"a": 1},),
    ),
    Kept(
        "what pydantic writes",
        {
            "$defs": {"Colour": {"enum": ["r", "g"], "title": "Colour", "type": "string"}},
            "properties": {
                "name": {"title": "Name", "type": "string", "maxLength": 5},
                "colour": {"$ref": "#/$defs/Colour"},
                "age": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "Age"},
            },
            "required": ["name", "colour"],
            "title": "Thing",
            "type": "object",
        },
        ({"name": "x", "colour": "r"}, {"name": "x", "colour": "g", "age": None}),
    ),
)

# A schema, and the path of the keyword that an error has to name.
REFUSED: tuple[tuple[Any, str], ...] = (
    ({"not": I}, ".not"),
    (closed({"a": {"type": "array", "items": I, "uniqueItems": True}}), ".properties.a.uniqueItems"),
    ({"type": "array", "contains": I}, ".contains"),
    ({"type": "array", "items": {"contains": I, "minContains": 2}}, ".items.contains"),
    ({"if": I, "then": {"minimum": 3}}, ".if"),
    ({"type": "object", "propertyNames": {"maxLength": 3}}, ".propertyNames"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, ".dependentRequired"),
    ({"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}, ".dependentSchemas"),
    ({"type": "object", "dependencies": {"a": ["b"]}}, ".dependencies"),
    ({"allOf": [obj({"a": I})], "unevaluatedProperties": False}, ".unevaluatedProperties"),
    ({"type": "array", "unevaluatedItems": False}, ".unevaluatedItems"),
    ({"$dynamicRef": "#a"}, ".$dynamicRef"),
    ({"$ref": "https://example.org/schema"}, ".$ref"),
    ({"$ref": "#/$defs/missing"}, ".$ref"),
    ({"type": "object", "additionalProperties": I, "minProperties": 2}, ".minProperties"),
    (closed({"a": I, "b": I, "c": I, "d": I}, ["a"], maxProperties=3), ".maxProperties"),
    ({"type": "string", "format": "uri-reference"}, ".format"),
    ({"type": "string", "pattern": "(?=a)b"}, ".pattern"),
    (closed({"a": {"type": "string", "pattern": "(("}}), ".properties.a.pattern"),
    ({"oneOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 9}]}, ".oneOf"),
    ({"anyOf": [I, {"oneOf": [S, SHORT]}]}, ".anyOf[1].oneOf"),
    ({"const": 9007199254740993}, ".const"),
    ({"enum": [1, {"a": [-9007199254740993]}]}, ".enum"),
    ({"type": "integer", "minimum": 9007199254740993}, ".minimum"),
    ({"type": "object", "properties": {"ab": I}, "patternProperties": {"^a": S}}, ".patternProperties"),
    ({"type": "object", "patternProperties": {"^a": I, "b$": S}}, ".patternProperties"),
    ({"type": "widget"}, ".type"),
    (closed({"a": {"type": "string", "minLength": -1}}), ".properties.a.minLength"),
    ({"type": "string", "minLength": 5, "maxLength": 2}, ".minLength"),
    ({"type": "integer", "minimum": 5, "maximum": 2}, ".minimum"),
    (False, ""),
    ({"enum": []}, ".enum"),
    ({"properties": []}, ".properties"),
    ({"type": "array", "items": 3}, ".items"),
    ({"anyOf": [I, "string"]}, ".anyOf[1]"),
)
