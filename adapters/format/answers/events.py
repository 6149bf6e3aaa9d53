"""What an answer turns out to hold, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """More of what the answer says."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """More of the reasoning before it."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """A call of a tool, whose arguments follow."""

    index: int  # among the calls of the answer
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments, as JSON."""

    index: int
    text: str


AnswerEvent = Text | Thought | CallBegins | Arguments
