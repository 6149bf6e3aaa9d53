"""Log lines as JSON, one object a line, with the id of the request that they are about."""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

from manylora.server.api.access.redaction import RedactingFormatter, Redactor

CURRENT_REQUEST: Final[ContextVar[str | None]] = ContextVar("manylora_request", default=None)
"""The id of the request that this task answers."""

FIELDS: Final = "fields"  # the attribute of a record with more to be told of it


class JsonFormatter(logging.Formatter):
    """Makes a line of a record: time, level, logger, message, request id, and a traceback if there is one."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor
        self._text = RedactingFormatter("%(message)s", redactor)

    def format(self, record: logging.LogRecord) -> str:
        """One line without keys, whatever is in the record."""
        bare = logging.makeLogRecord({**vars(record), "exc_info": None, "exc_text": None, "stack_info": None})
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._text.format(bare),
        }
        request = CURRENT_REQUEST.get()
        if request is not None:
            told["request_id"] = self._redactor.redact(request)
        for name, value in getattr(record, FIELDS, {}).items():
            told[name] = self._redactor.redact(value) if isinstance(value, str) else value
        if record.exc_info:
            told["exception"] = self._text.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)
