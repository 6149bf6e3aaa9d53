"""JSON Lines to objects with their line numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manylora.adapters.training.data.faults import Findings
from manylora.adapters.training.data.reading.lines import Line
from manylora.adapters.training.data.reading.strict_json import loads

_ONE_A_LINE = "call it .json, or write one JSON object a line (jq -c '.[]' FILE > FILE.jsonl)"


def read_json_lines(path: Path, content: bytes, findings: Findings) -> list[Line]:
    """The object of every line; what can't be read is a fault of its line and left out."""
    if content.lstrip()[:1] == b"[":
        line = 1 + content[: len(content) - len(content.lstrip())].count(b"\n")
        findings.fault(path, line, f"is one JSON array, not JSON Lines: {_ONE_A_LINE}")
        return []
    lines = []
    for number, raw in enumerate(content.split(b"\n"), 1):
        if not raw.strip():
            continue
        value = _parse(path, number, raw, findings)
        if value is not None:
            lines.append(Line(path, number, value))
    return lines


def _parse(path: Path, number: int, raw: bytes, findings: Findings) -> dict[str, Any] | None:
    try:
        value = loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8 at byte {error.start + 1} of the line: save it as UTF-8"
    except json.JSONDecodeError as error:
        hint = "; a row must be on one line" if raw.strip() in (b"{", b"[") else ""
        fault = f"is not JSON at column {error.colno}: {error.msg}{hint}"
    except (ValueError, RecursionError) as error:
        fault = f"is not a row: {error}"
    else:
        if isinstance(value, dict):
            return value
        fault = f"is {kind_of(value)}, not an object with the fields of a row"
    findings.row_fault(path, number, fault)
    return None


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    return "an array" if isinstance(value, list) else "a string" if isinstance(value, str) else "a number"
