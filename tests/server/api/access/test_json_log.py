"""Logs as JSON: one object a line, with the request's id, and without keys."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from manylora.server.api.access.json_log import CURRENT_REQUEST, FIELDS, JsonFormatter
from manylora.server.api.access.redaction import Redactor

FORMATTER = JsonFormatter(Redactor(["the-secret-key"]))


def line(message: str, *arguments: object, **more: Any) -> dict[str, Any]:
    record = logging.LogRecord(
        "manylora.x", logging.WARNING, "", 0, message, arguments, more.pop("exc_info", None)
    )
    vars(record).update(more)
    text = FORMATTER.format(record)
    assert "\n" not in text
    assert "the-secret-key" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_line_has_what_is_known() -> None:
    told = line("%s is gone\nwith\t%d", "é", 5)
    assert told["message"] == "é is gone\nwith\t5"
    assert (told["level"], told["logger"]) == ("warning", "manylora.x")
    assert told["time"].endswith("+00:00")
    assert "request_id" not in told
    token = CURRENT_REQUEST.set("req-the-secret-key")
    assert line("x")["request_id"] == "req-[key]"
    CURRENT_REQUEST.reset(token)
    assert line("x", **{FIELDS: {"path": "/the-secret-key", "status": 200}})["path"] == "/[key]"


def test_no_key_is_in_a_traceback_or_an_argument() -> None:
    try:
        raise ValueError("the-secret-key")
    except ValueError:
        told = line("%s", "the-secret-key", exc_info=sys.exc_info())
    assert told["message"] == "[key]"
    assert "ValueError: [key]" in told["exception"]
