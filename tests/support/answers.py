"""Answers taken apart: what a parser makes of a text, whole or in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from manylora.adapters.format.answers.events import AnswerEvent, Arguments, CallBegins, Text
from manylora.adapters.format.answers.parser import AnswerParser
from manylora.adapters.format.answers.syntax import AnswerFormat
from manylora.adapters.format.answers.values import Properties

ANY: Mapping[str, Properties] = {"f": {}, "g": {}}


@dataclass
class Parsed:
    """What an answer held."""

    text: str = ""
    thought: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)  # name, arguments as they were written

    @property
    def read(self) -> list[tuple[str, Any]]:
        """The calls, their arguments read as JSON."""
        return [(name, json.loads(arguments)) for name, arguments in self.calls]

    def add(self, events: Iterable[AnswerEvent]) -> None:
        for event in events:
            if isinstance(event, Text):
                self.text += event.text
            elif isinstance(event, CallBegins):
                assert event.index == len(self.calls)
                self.calls.append((event.name, ""))
            elif isinstance(event, Arguments):
                assert event.index == len(self.calls) - 1, "calls do not overlap"
                name, before = self.calls[-1]
                self.calls[-1] = (name, before + event.text)
            else:
                self.thought += event.text


def parse(
    form: AnswerFormat,
    pieces: str | Iterable[str],
    tools: Mapping[str, Properties] | None = ANY,
    **how: Any,
) -> Parsed:
    """What comes out of an answer that arrives in ``pieces``."""
    parser, parsed = AnswerParser(form, tools, **how), Parsed()
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        parsed.add(parser.feed(piece))
    parsed.add(parser.finish())
    return parsed
