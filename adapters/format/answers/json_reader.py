"""JSON read as it arrives: where values begin and end, without waiting for the whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from manylora.adapters.format.answers.incoming import SPACE, IncomingText, Reading

Sink = Callable[[str], None]

MAX_DEPTH: Final = 200  # of brackets; the standard library's reader takes about as many

_PLAIN_IN_STRING = re.compile(r'[^"\\]+')
_PLAIN = re.compile(r'[^"{}\[\]]+')
_SCALAR_ENDS = SPACE + ",}]"


class NotJson(Exception):
    """What has come is no JSON."""


def read_string(incoming: IncomingText, sink: Sink) -> Reading[None]:
    """Read a string with its quotes, handing its text on as it comes.

    Raises:
        NotJson: the text ends, or something else comes.
    """
    yield from _take(incoming, '"', sink)
    while True:
        if not (yield from incoming.more()):
            raise NotJson
        plain = incoming.match(_PLAIN_IN_STRING)
        if plain:
            sink(plain)
        elif (yield from incoming.literal('"')):
            sink('"')
            return
        elif (yield from incoming.at_least(2)):  # a backslash and what it escapes
            sink(incoming.take(2))
        else:
            raise NotJson


def read_value(incoming: IncomingText, sink: Sink) -> Reading[None]:
    """Read one value of any kind, handing its text on as it comes.

    Raises:
        NotJson: the text ends within it, or it is nested too deeply, or none comes.
    """
    first = yield from incoming.peek()
    if first == '"':
        yield from read_string(incoming, sink)
    elif first and first in "{[":
        yield from _read_nested(incoming, sink)
    else:
        yield from _read_scalar(incoming, sink)


def _read_nested(incoming: IncomingText, sink: Sink) -> Reading[None]:
    closers: list[str] = []
    while True:
        character = yield from incoming.peek()
        if not character:
            raise NotJson
        if character == '"':
            yield from read_string(incoming, sink)
        elif character in "{[":
            closers.append("}" if character == "{" else "]")
            if len(closers) > MAX_DEPTH:
                raise NotJson
            sink(incoming.take(1))
        elif character in "}]":
            if closers.pop() != character:
                raise NotJson
            sink(incoming.take(1))
            if not closers:
                return
        else:
            sink(incoming.match(_PLAIN))


def _read_scalar(incoming: IncomingText, sink: Sink) -> Reading[None]:
    seen = False
    while True:
        character = yield from incoming.peek()
        if not character or character in _SCALAR_ENDS:
            break
        if character in '"{[':
            raise NotJson
        sink(incoming.take(1))
        seen = True
    if not seen:
        raise NotJson


def _take(incoming: IncomingText, wanted: str, sink: Sink) -> Reading[None]:
    character = yield from incoming.peek()
    if character != wanted:
        raise NotJson
    sink(incoming.take(1))


def read_members(incoming: IncomingText, member: Callable[[str], Reading[None]]) -> Reading[None]:
    """Read an object; ``member`` reads the value of each key, which it is given.

    Raises:
        NotJson: it is none, or the text ends within it.
    """
    yield from _take(incoming, "{", _nowhere)
    yield from incoming.skip_space()
    if (yield from incoming.literal("}")):
        return
    while True:
        yield from incoming.skip_space()
        key: list[str] = []
        yield from read_string(incoming, key.append)
        yield from incoming.skip_space()
        yield from _take(incoming, ":", _nowhere)
        yield from incoming.skip_space()
        yield from member("".join(key)[1:-1])
        yield from incoming.skip_space()
        if (yield from incoming.literal("}")):
            return
        yield from _take(incoming, ",", _nowhere)


def _nowhere(_: str) -> None:
    """Takes text that nobody wants."""
