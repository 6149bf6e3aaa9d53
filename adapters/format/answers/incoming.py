"""Text that arrives in pieces, for readers that are written as if it were all there.

A reader is a generator: where it needs more text than has come it yields, and goes on when there is more or
the text has ended. So what it reads does not depend on where the pieces were cut.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from typing import TypeVar

R = TypeVar("R")
Reading = Generator[None, None, R]  # yields where it waits for text, returns what it has read

SPACE = " \t\r\n"


class IncomingText:
    """What has come of a text, and how far it is read."""

    def __init__(self) -> None:
        self._text = ""
        self._ended = False
        self.position = 0  # in what is kept

    def add(self, text: str) -> None:
        """Take the next piece."""
        self._text += text

    def end(self) -> None:
        """There will be no more."""
        self._ended = True

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def rest(self) -> str:
        """What has come and is not read."""
        return self._text[self.position :]

    def since(self, position: int) -> str:
        """What is read, from ``position`` on."""
        return self._text[position : self.position]

    def forget(self) -> None:
        """Drop what is read; positions count from here."""
        self._text, self.position = self._text[self.position :], 0

    def take(self, count: int) -> str:
        """Read ``count`` characters that have come."""
        start, self.position = self.position, self.position + count
        return self._text[start : self.position]

    def match(self, pattern: re.Pattern[str]) -> str:
        """Read what ``pattern`` matches of what has come and is not read; "" if it matches nothing."""
        found = pattern.match(self._text, self.position)
        return self.take(found.end() - self.position) if found else ""

    def more(self) -> Reading[bool]:
        """Wait until there is text that is not read; False at the end."""
        return (yield from self.at_least(1))

    def at_least(self, count: int) -> Reading[bool]:
        """Wait for ``count`` characters that are not read; False if the text ends before."""
        while len(self._text) - self.position < count:
            if self._ended:
                return False
            yield
        return True

    def peek(self) -> Reading[str]:
        """The next character; "" at the end."""
        there = yield from self.more()
        return self._text[self.position] if there else ""

    def skip_space(self) -> Reading[None]:
        """Read over white space."""
        while (character := (yield from self.peek())) and character in SPACE:
            self.position += 1

    def literal(self, wanted: str) -> Reading[bool]:
        """Read ``wanted`` if it comes next; else nothing is read."""
        for size in range(1, len(wanted) + 1):
            there = yield from self.at_least(size)
            if not there or not self._text.startswith(wanted[:size], self.position):
                return False
        self.position += len(wanted)
        return True

    def marker(self, wanted: str) -> Reading[bool]:
        """Read a marker if it comes next, whatever space there is around its words; else nothing."""
        start = self.position
        for line in wanted.split():
            yield from self.skip_space()
            if not (yield from self.literal(line)):
                self.position = start
                return False
        return True


def find_first(text: str, wanted: Iterable[str]) -> tuple[int, str] | None:
    """Where the first of ``wanted`` begins in ``text``, and which it is; of two at a place the longer."""
    found = [(place, -len(each), each) for each in wanted if (place := text.find(each)) >= 0]
    return (min(found)[0], min(found)[2]) if found else None


def pending(text: str, wanted: Iterable[str]) -> int:
    """How many characters at the end of ``text`` could be the beginning of one of ``wanted``."""
    return max((_overlap(text, each) for each in wanted), default=0)


def _overlap(text: str, wanted: str) -> int:
    for size in range(min(len(wanted) - 1, len(text)), 0, -1):
        if text.endswith(wanted[:size]):
            return size
    return 0
