"""API keys taken out of texts that clients have a part in, before they are logged or sent."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from manylora.adapters.registry.tenants.records import KEY_PATTERN

MASK = "[key]"
_SHORTEST_IN_ERRORS = 8  # characters: shorter keys are words that error messages use


class Redactor:
    """Replaces every one of some keys, and of all tenants' keys, in a text, however the text spells it."""

    def __init__(self, keys: Iterable[str]) -> None:
        spellings = sorted({each for key in keys for each in _spellings(key)}, key=len, reverse=True)
        # Keys of tenants are known to nobody here, but all look alike; no spelling changes their characters.
        self._pattern = re.compile("|".join([*map(re.escape, spellings), KEY_PATTERN]))

    def redact(self, text: str) -> str:
        """``text`` with a mark in place of each key."""
        return self._pattern.sub(MASK, text)


def error_redactor(keys: Iterable[str]) -> Redactor:
    """What takes keys out of error messages, where a client has put one into a name or a path."""
    return Redactor(key for key in keys if len(key) >= _SHORTEST_IN_ERRORS)


def _spellings(key: str) -> Iterator[str]:
    """How a key may look in a text: as it is, quoted for URLs, escaped, or read as another encoding."""
    yield key
    yield key.encode().decode("latin-1")  # as headers are read
    for quoted in (quote(key, safe=""), quote(key)):
        yield quoted
        yield re.sub("%..", lambda code: code.group().lower(), quoted)
    yield ascii(key)[1:-1]
    yield repr(key.encode())[2:-1]
    yield json.dumps(key)[1:-1]


class RedactingFormatter(logging.Formatter):
    """A formatter of log lines that takes keys out of what is filled in, tracebacks included."""

    def __init__(self, form: str, redactor: Redactor) -> None:
        super().__init__(form)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The line for ``record``, which stays as it is for other handlers."""
        clean = logging.makeLogRecord(vars(record))
        clean.exc_text = None  # another handler may have left it there as it was
        if isinstance(clean.args, tuple) and clean.args:
            clean.args = tuple(map(self._clean, clean.args))
        else:
            clean.msg, clean.args = self._redactor.redact(record.getMessage()), ()
        return super().format(clean)

    def formatException(self, ei: Any) -> str:
        """The traceback of a record."""
        return self._redactor.redact(super().formatException(ei))

    def _clean(self, value: object) -> object:
        """``value``, or its text if there is a key in it."""
        text = str(value)
        redacted = self._redactor.redact(text)
        return value if redacted == text else redacted
