"""A JSON file that is one value: an array of rows, an object that holds one under a key, or a single row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from manylora.adapters.training.data.faults import Findings
from manylora.adapters.training.data.reading.jsonl import kind_of
from manylora.adapters.training.data.reading.lines import Line
from manylora.adapters.training.data.reading.strict_json import loads

DATA_KEYS = ("data", "rows", "train", "examples", "instances", "records", "items")
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

IsRow = Callable[[Mapping[str, Any]], bool]


def is_whole(content: bytes) -> bool:
    """Whether the content of a ``.json`` file is one value rather than JSON Lines."""
    if content.lstrip()[:1] != b"{":
        return True
    first, _, rest = content.lstrip().partition(b"\n")
    if not rest.strip():
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return False


def read_whole(path: Path, content: bytes, findings: Findings, is_row: IsRow) -> list[Line]:
    """The rows of a JSON file; ``is_row`` tells whether an object is a row of a known format."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        findings.fault(path, line, "is not UTF-8: save it as UTF-8")
        return []
    try:
        return _Reader(path, text, findings).rows(is_row)
    except json.JSONDecodeError as error:
        findings.fault(path, error.lineno, f"is not JSON at column {error.colno}: {error.msg}")
    except RecursionError as error:
        findings.fault(path, 0, f"is nested too deeply: {error}")
    return []


class _Reader:
    """Walks through one JSON text, so that each row is known with its line."""

    def __init__(self, path: Path, text: str, findings: Findings) -> None:
        self._path = path
        self._text = text
        self._findings = findings
        self._counted = (0, 1)  # a position and its line

    def rows(self, is_row: IsRow) -> list[Line]:
        start = self._skip(0)
        if self._text[start : start + 1] == "[":
            return self._array(start)
        value, end = _DECODER.raw_decode(self._text, start)
        if self._skip(end) < len(self._text):
            raise json.JSONDecodeError("Extra data", self._text, self._skip(end))
        if not isinstance(value, dict):
            self._findings.fault(self._path, self._line(start), f"is {kind_of(value)}, not a list of rows")
            return []
        if is_row(value):
            return [line for line in [self._row(start, end)] if line is not None]
        return self._under_key(start, value)

    def _under_key(self, start: int, value: dict[str, Any]) -> list[Line]:
        """The rows of the one key that holds a list of objects."""
        held = [key for key, item in value.items() if isinstance(item, list) and item and _objects(item)]
        named = [key for key in DATA_KEYS if key in held] or held
        if not held or (len(named) > 1 and named[0] not in DATA_KEYS):
            keys = ", ".join(map(str, value)) or "(none)"
            which = "several of" if held else "none of"
            self._findings.fault(
                self._path,
                self._line(start),
                f"is one JSON object, and {which} its keys hold a list of rows ({keys}): keep the rows in "
                f"one array, or under {DATA_KEYS[0]}",
            )
            return []
        for key in held:
            if key != named[0]:
                self._findings.warn(self._path, 0, f"{key}: not read; the rows are those of {named[0]}")
        return self._array(next(at for key, at in self._members(start) if key == named[0]))

    def _members(self, start: int) -> Iterator[tuple[str, int]]:
        """Each key of the object at ``start`` with the position of its value."""
        at = self._skip(start + 1)
        while self._text[at] != "}":
            key, at = _DECODER.raw_decode(self._text, at)
            at = self._skip(self._skip(at) + 1)  # over the colon
            yield key, at
            _, at = _DECODER.raw_decode(self._text, at)
            at = self._skip(at)
            at = self._skip(at + 1) if self._text[at] == "," else at

    def _array(self, start: int) -> list[Line]:
        lines: list[Line] = []
        count = 0
        at = self._skip(start + 1)
        if self._text[at : at + 1] == "]":
            self._findings.fault(self._path, self._line(start), "has no rows")
            return lines
        while True:
            _, end = _DECODER.raw_decode(self._text, at)
            count += 1
            row = self._row(at, end, count)
            lines += [] if row is None else [row]
            at = self._skip(end)
            mark = self._text[at : at + 1]
            if mark == "]":
                return lines
            if mark != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", self._text, at)
            at = self._skip(at + 1)

    def _row(self, start: int, end: int, row: int = 0) -> Line | None:
        number = self._line(start)
        try:
            value = loads(self._text[start:end])
        except ValueError as error:
            self._findings.row_fault(self._path, number, f"is not a row: {error}", row)
            return None
        if not isinstance(value, dict):
            self._findings.row_fault(
                self._path, number, f"is {kind_of(value)}, not an object with the fields of a row", row
            )
            return None
        return Line(self._path, number, value, row)

    def _skip(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        return at if match is None else match.end()

    def _line(self, at: int) -> int:
        """The line of a position; asked for in ascending order, or it counts anew."""
        position, line = self._counted if self._counted[0] <= at else (0, 1)
        self._counted = (at, line + self._text.count("\n", position, at))
        return self._counted[1]


def _objects(items: list[Any]) -> bool:
    return all(isinstance(item, dict) for item in items)
