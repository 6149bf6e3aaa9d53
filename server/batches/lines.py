"""The lines of a batch: what is read of each, and what is written of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

ENDPOINTS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
    "/classify",
    "/v1/compare",
)
_ALONE: Final = ("stream", "background")  # fields that ask for something else than an answer
MAX_LINES: Final = 50_000
MAX_ID: Final = 512  # characters of a line's id
MAX_FAULTS: Final = 20  # that are told of one file


@dataclass(frozen=True, slots=True)
class Line:
    """One request."""

    number: int  # from 1
    custom_id: str
    url: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LineFault:
    """Why a line can't be a request."""

    number: int
    code: str
    message: str
    param: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As OpenAI writes it into a batch."""
        return {"code": self.code, "line": self.number, "message": self.message, "param": self.param}


def read_lines(path: Path, max_bytes: int) -> Iterator[Line | LineFault]:
    """The requests of a file, one in memory at a time; empty lines are passed over.

    Args:
        path: JSON lines.
        max_bytes: a longer line is a fault.
    """
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(max_bytes + 1):
            number += 1
            if len(raw) > max_bytes:
                yield LineFault(number, "line_too_long", f"has more than {max_bytes:,} bytes")
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(max_bytes)
                continue
            if raw.strip():
                yield parse_line(raw, number)


def parse_line(raw: bytes, number: int) -> Line | LineFault:
    """The request in one line."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return LineFault(number, "invalid_json_line", f"is not valid JSON: {type(error).__name__}")
    if not isinstance(value, dict):
        return LineFault(number, "invalid_json_line", "is not a JSON object")
    fault = _fault(value, number)
    return fault or Line(number, value["custom_id"], value["url"], value["body"])


def _fault(value: Mapping[str, Any], number: int) -> LineFault | None:
    """What is wrong with the object of a line."""
    custom_id, body = value.get("custom_id"), value.get("body")
    right_id = isinstance(custom_id, str) and 1 <= len(custom_id) <= MAX_ID
    checks = (
        (right_id, "missing_required_parameter", "custom_id", f"must be a text of 1 to {MAX_ID} characters"),
        (value.get("method", "POST") == "POST", "invalid_method", "method", "must be POST"),
        (value.get("url") in ENDPOINTS, "invalid_url", "url", f"must be one of {', '.join(ENDPOINTS)}"),
        (isinstance(body, dict), "missing_required_parameter", "body", "must be a JSON object"),
        *((_is_left(body, name), "invalid_request", f"body.{name}", "is not batched") for name in _ALONE),
    )
    failed = next(((code, name, says) for right, code, name, says in checks if not right), None)
    return None if failed is None else LineFault(number, failed[0], f"'{failed[1]}' {failed[2]}", failed[1])


def _is_left(body: Any, name: str) -> bool:
    return not (isinstance(body, dict) and body.get(name))


def check_lines(path: Path, max_bytes: int, endpoint: str | None) -> tuple[int, list[LineFault]]:
    """How many requests a file has, and the first faults of it.

    Args:
        path: JSON lines.
        max_bytes: of a line.
        endpoint: that all lines must name; None: any of :data:`ENDPOINTS`.
    """
    seen: set[bytes] = set()
    faults: list[LineFault] = []
    count = 0
    for line in read_lines(path, max_bytes):
        if len(faults) >= MAX_FAULTS:
            break
        if isinstance(line, LineFault):
            faults.append(line)
            continue
        count += 1
        key = hashlib.blake2b(line.custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key in seen:
            message = f"custom_id {line.custom_id!r} occurs twice"
            faults.append(LineFault(line.number, "duplicate_custom_id", message, "custom_id"))
        seen.add(key)
        if endpoint is not None and line.url != endpoint:
            message = f"'url' must be {endpoint}, the endpoint of the batch"
            faults.append(LineFault(line.number, "mismatched_endpoint", message, "url"))
        if count > MAX_LINES:
            faults.append(
                LineFault(line.number, "too_many_lines", f"a batch has at most {MAX_LINES:,} requests")
            )
            break
    if not count and not faults:
        faults.append(LineFault(1, "empty_file", "the file has no requests"))
    return count, faults


def answered(line: Line, status: int, body: Any, request_id: str) -> bytes:
    """The line of an answer, whatever its status."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _line(line, response, None)


def unanswered(line: Line, code: str, message: str) -> bytes:
    """The line of a request that was never sent."""
    return _line(line, None, {"code": code, "message": message})


def _line(line: Line, response: Any, error: Any) -> bytes:
    value = {
        "id": f"batch_req_{uuid4().hex}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
