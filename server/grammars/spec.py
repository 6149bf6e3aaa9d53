"""What a request asks its answer to look like: a value, independent of any tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

Schema = Mapping[str, Any] | bool


class GrammarKind(StrEnum):
    """How the text of a :class:`GrammarSpec` is to be read."""

    JSON_SCHEMA = "JSON schema"  # the schema as JSON
    REGEX = "regular expression"  # the whole answer matches it; Rust's syntax, without look-around
    CHOICE = "choice"  # a JSON array of strings, of which the answer is one
    LARK = "Lark grammar"  # as llguidance reads it: %json, lazy lexemes, <[token ids]>
    GBNF = "GBNF grammar"  # llama.cpp's
    LLGUIDANCE = "llguidance grammar"  # {"grammars": [...]}, ready for the library


@dataclass(frozen=True, slots=True)
class Marker:
    """A mark in an answer: plain text, or one control token."""

    text: str
    token_id: int | None = None  # of the control token; None: it is spelled in ordinary tokens


@dataclass(frozen=True, slots=True)
class Preface:
    """Free text before what a grammar describes, up to a mark: a block of reasoning.

    Blanks and line breaks may follow ``closes``. Control tokens other than the marks can't occur in it.
    """

    closes: Marker
    opens: Marker | None = None  # None: the answer begins inside of it
    required: bool = False  # whether an answer has to open it; without ``opens`` it is open anyway
    max_tokens: int | None = None  # after so many the closing mark is forced, which is a control token then


@dataclass(frozen=True, slots=True)
class JsonStyle:
    """How JSON may be written, and how strictly a schema is kept."""

    whitespace_pattern: str | None = None  # matches what stands between two tokens of JSON; None: some blanks
    compact: bool = False  # no blanks at all
    closed: bool = False  # objects that name their properties have no others
    lenient: bool = False  # keywords that answers can't be held to are left out instead of refused


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """One grammar that a whole answer has to follow, end tokens aside."""

    kind: GrammarKind
    text: str
    style: JsonStyle = JsonStyle()
    preface: Preface | None = None
    param: str = field(default="structured_outputs", compare=False)  # the request's field that asks for it

    @classmethod
    def json_schema(cls, schema: Schema, *, param: str, style: JsonStyle = JsonStyle()) -> GrammarSpec:
        """JSON that is valid by ``schema``, as draft 2020-12 reads it."""
        return cls(GrammarKind.JSON_SCHEMA, json.dumps(schema), style, param=param)

    @classmethod
    def json_object(cls, *, param: str, style: JsonStyle = JsonStyle()) -> GrammarSpec:
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, param=param, style=style)

    @classmethod
    def regex(cls, pattern: str, *, param: str) -> GrammarSpec:
        """Text that ``pattern`` matches from its beginning to its end."""
        return cls(GrammarKind.REGEX, pattern, param=param)

    @classmethod
    def choice(cls, choices: Sequence[str], *, param: str) -> GrammarSpec:
        """One of ``choices``."""
        return cls(GrammarKind.CHOICE, json.dumps(list(choices)), param=param)

    @classmethod
    def lark(cls, text: str, *, param: str) -> GrammarSpec:
        """What the rule ``start`` of a Lark grammar describes."""
        return cls(GrammarKind.LARK, text, param=param)

    @classmethod
    def gbnf(cls, text: str, *, param: str) -> GrammarSpec:
        """What the rule ``root`` of a GBNF grammar describes."""
        return cls(GrammarKind.GBNF, text, param=param)

    def after(self, preface: Preface) -> GrammarSpec:
        """The same behind a block of free text."""
        return replace(self, preface=preface)
