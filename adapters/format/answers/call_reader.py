"""One call of a tool, read as it arrives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from manylora.adapters.format.answers.incoming import SPACE, IncomingText, Reading, pending
from manylora.adapters.format.answers.json_reader import NotJson, read_members, read_string, read_value
from manylora.adapters.format.answers.syntax import CallSyntax, Shape, Tags
from manylora.adapters.format.answers.values import Properties, is_text, value_of

MAX_NAME = 256  # characters of a tool's name
_OTHER_KEYS = frozenset({"id", "type", "name", "arguments", "parameters", "function"})


class NoCall(Exception):
    """What has come is no call."""


class CallReader:
    """Reads what stands between the markers of one call."""

    def __init__(
        self,
        incoming: IncomingText,
        syntax: CallSyntax,
        tools: Mapping[str, Properties],
        *,
        begins: Callable[[str], None],
        arguments: Callable[[str], None],
        only_known: bool = False,
    ) -> None:
        """
        Args:
            incoming: the text.
            syntax: how the call is written.
            tools: the arguments of the tools by name, by which tagged values get their types.
            begins: hears the name, once, before any arguments.
            arguments: hears the arguments, JSON in pieces.
            only_known: what calls none of ``tools`` is no call.
        """
        self._incoming = incoming
        self._syntax = syntax
        self._tools = tools
        self._begins = begins
        self._arguments = arguments
        self._only_known = only_known
        self._name: str | None = None
        self._waiting: list[str] = []  # arguments that came before the name
        self._has_arguments = False

    @property
    def begun(self) -> bool:
        """Whether the name was told: from then on it is a call, whatever follows."""
        return self._name is not None

    def read(self) -> Reading[None]:
        """Read the call, without the markers around it.

        Raises:
            NoCall, NotJson: it is none, or the text ends within it.
        """
        if self._syntax.shape is Shape.OBJECT:
            yield from read_members(self._incoming, self._member)
            if not self.begun:
                raise NoCall
            self._end()
        elif self._syntax.shape is Shape.NAMED:
            yield from self._read_name()
            yield from self._read_arguments()
            self._end()
        else:
            assert self._syntax.tags is not None, "a tagged call has tags"
            yield from self._read_name()
            yield from self._read_tagged(self._syntax.tags)

    def _end(self) -> None:
        if not self._has_arguments:
            self._sink("{}")

    # Objects.

    def _member(self, key: str) -> Reading[None]:
        syntax = self._syntax
        if key == syntax.wrap_key and not self.begun:
            yield from read_members(self._incoming, self._member)
        elif key == syntax.name_key and not self.begun:
            name: list[str] = []
            yield from read_string(self._incoming, name.append)
            self._set_name(_decoded("".join(name)))
        elif key == syntax.arguments_key and not self._has_arguments:
            yield from self._read_arguments()
        elif self._only_known and key not in _OTHER_KEYS:
            raise NoCall  # so that other objects are not held back to their end
        else:
            yield from read_value(self._incoming, _nowhere)

    def _set_name(self, name: str) -> None:
        if not name or len(name) > MAX_NAME or (self._only_known and name not in self._tools):
            raise NoCall
        self._name = name
        self._begins(name)
        for piece in self._waiting:
            self._arguments(piece)

    def _read_arguments(self) -> Reading[None]:
        """Read the arguments: an object, or the text of one, or nothing."""
        yield from self._incoming.skip_space()
        first = yield from self._incoming.peek()
        if first == "{":
            self._has_arguments = True
            yield from read_value(self._incoming, self._sink)
            return
        value: list[str] = []
        yield from read_value(self._incoming, value.append)
        text = "".join(value)
        if first == '"':
            text = _decoded(text).strip()
        if text not in ("", "null"):
            self._has_arguments = True
            self._sink(text)

    def _sink(self, text: str) -> None:
        if self.begun:
            self._arguments(text)
        else:
            self._waiting.append(text)

    # Names before arguments.

    def _read_name(self) -> Reading[None]:
        """Read a name and what stands behind it."""
        end = self._syntax.name_end.strip()
        tags = self._syntax.tags
        stops = SPACE + (end[0] if end else "{") + ("" if tags is None else tags.open[0])
        yield from self._incoming.skip_space()
        start = self._incoming.position
        while True:
            character = yield from self._incoming.peek()
            if not character or self._incoming.position - start > MAX_NAME:
                raise NoCall
            if character in stops:
                break
            self._incoming.take(1)
        name = self._incoming.since(start)
        if not (yield from self._incoming.marker(self._syntax.name_end)):
            raise NoCall
        if not end and self._syntax.shape is Shape.NAMED:  # only the brace tells that it was a name
            yield from self._incoming.skip_space()
            if (yield from self._incoming.peek()) != "{":
                raise NoCall
        self._set_name(name)

    # Tags.

    def _read_tagged(self, tags: Tags) -> Reading[None]:
        properties = self._tools.get(self._name or "", {})
        begin = "{"
        while (yield from self._incoming.marker(tags.open)):
            key = yield from self._until(tags.close.strip(), _nowhere)
            self._sink(f"{begin}{_json(key.strip())}: ")
            begin = ", "
            yield from self._read_tagged_value(properties.get(key.strip()), tags)
        self._sink("{}" if begin == "{" else "}")

    def _read_tagged_value(self, schema: Any, tags: Tags) -> Reading[None]:
        yield from self._skip_lead(tags.close)
        if not is_text(schema):
            text = yield from self._until(tags.end, _nowhere)
            self._sink(_json(value_of(text, schema)))
            return
        self._sink('"')
        yield from self._until(tags.end, lambda text: self._sink(_json(text)[1:-1]))
        self._sink('"')

    def _skip_lead(self, close: str) -> Reading[None]:
        """Read the space that the marker before a value ends with, as far as it is there."""
        for space in close[len(close.rstrip()) :]:
            yield from self._incoming.literal(space)

    def _until(self, end: str, sink: Callable[[str], None]) -> Reading[str]:
        """Read up to ``end`` and over it: what stands before, which ``sink`` gets as it comes.

        The space that ``end`` begins with may be missing.
        """
        core = end.strip()
        lead = end[: len(end) - len(end.lstrip())]
        found: list[str] = []

        def tell(text: str) -> None:
            found.append(text)
            sink(text)

        while True:
            rest = self._incoming.rest
            place = rest.find(core)
            if place >= 0:
                tell(self._incoming.take(place).removesuffix(lead) if lead else self._incoming.take(place))
                self._incoming.take(len(core))
                return "".join(found)
            ready = len(rest) - max(pending(rest, (lead + core, core)), 0)
            if ready > 0:
                tell(self._incoming.take(ready))
            if not (yield from self._incoming.at_least(len(rest) - max(ready, 0) + 1)):
                rest = self._incoming.rest
                if rest:
                    tell(self._incoming.take(len(rest)))
                raise NotJson


def _decoded(text: str) -> str:
    """The text of a JSON string."""
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        raise NotJson from None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _nowhere(_: str) -> None:
    """Takes text that nobody wants."""
