"""A JSON Lines file to objects with their line numbers."""

from __future__ import annotations

import codecs
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from manylora.adapters.training.data.faults import Findings

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ONE_A_LINE = "write one JSON object a line (jq -c '.[]' FILE > FILE.jsonl)"


@dataclass(frozen=True, slots=True)
class Line:
    """One JSON object of a data file, with its line number."""

    path: Path
    number: int  # counted from 1
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DataFile:
    """The objects of one file and the digest of its bytes."""

    path: Path
    digest: str  # hex SHA-256
    lines: tuple[Line, ...]


def read_lines(path: Path, findings: Findings) -> DataFile:
    """Read ``path``; what can't be read is a fault of its line and left out."""
    try:
        content = path.read_bytes()
    except OSError as error:
        findings.fault(path, 0, f"can't be read: {(error.strerror or str(error)).lower()}")
        return DataFile(path, "", ())
    digest = hashlib.sha256(content).hexdigest()
    if _is_whole_file_fault(path, content, findings):
        return DataFile(path, digest, ())
    lines = []
    for number, raw in enumerate(content.split(b"\n"), 1):
        if not raw.strip():
            continue
        value = _parse(path, number, raw, findings)
        if value is not None:
            lines.append(Line(path, number, value))
    return DataFile(path, digest, tuple(lines))


def _is_whole_file_fault(path: Path, content: bytes, findings: Findings) -> bool:
    """Record what makes every line unreadable, once."""
    if not content.strip():
        findings.fault(path, 0, "is empty: write one JSON object a line")
    elif content.startswith(_UTF16):
        findings.fault(path, 1, "is UTF-16: save it as UTF-8")
    elif content.startswith(codecs.BOM_UTF8):
        findings.fault(path, 1, "begins with a byte order mark (BOM): save it as UTF-8 without BOM")
    elif content.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        findings.fault(path, 0, "is compressed: unpack it first")
    elif content.lstrip()[:1] == b"[":
        line = 1 + content[: len(content) - len(content.lstrip())].count(b"\n")
        findings.fault(path, line, f"is one JSON array, not JSON Lines: {_ONE_A_LINE}")
    else:
        return False
    return True


def _parse(path: Path, number: int, raw: bytes, findings: Findings) -> dict[str, Any] | None:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        findings.fault(path, number, f"is not UTF-8 at byte {error.start + 1} of the line: save it as UTF-8")
        return None
    except json.JSONDecodeError as error:
        hint = "; a row must be on one line" if raw.strip() in (b"{", b"[") else ""
        findings.fault(path, number, f"is not JSON at column {error.colno}: {error.msg}{hint}")
        return None
    except (ValueError, RecursionError) as error:
        findings.fault(path, number, f"is not a row: {error}")
        return None
    if not isinstance(value, dict):
        kind = "an array" if isinstance(value, list) else "a string" if isinstance(value, str) else "a number"
        findings.fault(path, number, f"is {kind}, not an object with the fields of a row")
        return None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice: keep one")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number: write null or a number")
