"""The one description of a format: how an answer writes calls of tools and reasoning.

What reads answers (``parser.py``), what writes calls (``writing.py``) and what binds a model to them (the
grammar of the server) all go by it, so none can know another format than the others.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Shape(StrEnum):
    """The three ways in which models write a call."""

    OBJECT = "object"  # {"name": "f", "arguments": {…}}
    NAMED = "named"  # f[ARGS]{…}: the name stands before the arguments
    TAGGED = "tagged"  # f><parameter=k>v</parameter>: each argument in markers of its own


class IdForm(StrEnum):
    """Which ids of calls a template takes."""

    ANY = "any"
    NINE = "nine"  # exactly nine letters and digits


@dataclass(frozen=True, slots=True)
class Tags:
    """How a tagged call writes its arguments: ``open`` key ``close`` value ``end``, for each."""

    open: str
    close: str
    end: str


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How calls of tools are written. Markers are texts; space at their ends is written, but not needed.

    The whole is ``begin``, the calls with ``separator`` between them, ``end``; one call is ``open``, what its
    ``shape`` says, ``close``. Calls that are ``listed`` stand as the items of one JSON list after ``begin``.
    """

    shape: Shape
    begin: str = ""
    end: str = ""
    open: str = ""
    close: str = ""
    separator: str = ""
    listed: bool = False
    several: bool = True  # whether one answer may hold more calls than one
    name_key: str = "name"  # of an object
    arguments_key: str = "arguments"
    wrap_key: str | None = None  # {"function": {"name": …}}: where both keys stand
    name_end: str = ""  # between name and arguments
    tags: Tags | None = None
    optional: str = ""  # a marker that may stand before a call or be left out
    ids: IdForm = IdForm.ANY

    @property
    def trigger(self) -> str:
        """What in a text tells that calls begin; "" where they begin with their own brace."""
        words = self.begin.split() or self.open.split()
        return words[0] if words and not self.optional else ""

    @property
    def markers(self) -> tuple[str, ...]:
        """All texts that a model writes around calls."""
        tags = () if self.tags is None else (self.tags.open, self.tags.close, self.tags.end)
        own = (self.begin, self.end, self.open, self.close, self.name_end, self.optional, *tags)
        return tuple(marker.strip() for marker in own if marker.strip())


@dataclass(frozen=True, slots=True)
class ReasoningSyntax:
    """The markers around reasoning, which stands before the answer; the first may be in the prompt."""

    open: str
    close: str


class Source(StrEnum):
    """From what a format is known."""

    RESPONSE_TEMPLATE = "response_template"
    DIFFERENCES = "differences"  # of what the chat template writes with and without calls
    FAMILY = "family"  # words in the chat template
    NONE = "none"


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How one model or adapter writes answers; None for what it has no way to write."""

    calls: CallSyntax | None = None
    reasoning: ReasoningSyntax | None = None
    source: Source = Source.NONE
    note: str | None = None  # what could not be read, for people

    @property
    def digest(self) -> str:
        """Equal for formats that read and write alike, whatever they are known from."""
        described = json.dumps([_plain(self.calls), _plain(self.reasoning)], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()


def _plain(part: CallSyntax | ReasoningSyntax | None) -> Any:
    return None if part is None else asdict(part)
