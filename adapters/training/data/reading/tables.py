"""Tables to objects: CSV and TSV with their lines, Parquet and Arrow with their rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manylora.adapters.training.data.faults import Findings
from manylora.adapters.training.data.reading.lines import Line

_LONGEST_CELL = 1 << 30  # characters; Python's own limit of 131,072 is less than a conversation may have


def read_separated(path: Path, content: bytes, findings: Findings, separator: str | None) -> list[Line]:
    """The rows of a CSV with a header; ``separator`` None: a comma, or what the header has instead."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        findings.fault(path, content[: error.start].count(b"\n") + 1, "is not UTF-8: save it as UTF-8")
        return []
    with _long_cells():
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=separator or _separator(text), strict=True
        )
        lines: list[Line] = []
        try:
            header = next(reader, [])
            if _is_header(path, header, findings):
                lines.extend(_rows(path, header, reader, findings))
        except csv.Error as error:
            findings.fault(path, max(1, reader.line_num), f"is not CSV: {error}")
    return lines


def _is_header(path: Path, header: list[str], findings: Findings) -> bool:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        findings.fault(path, 1, f"the header has the column {twice[0]!r} twice: keep one")
    elif not any(name.strip() for name in header):
        findings.fault(path, 1, "has no header: the first line must name the columns")
    else:
        return True
    return False


def _rows(path: Path, header: list[str], reader: Any, findings: Findings) -> Iterator[Line]:
    number = reader.line_num + 1
    for cells in reader:
        if len(cells) == len(header):
            yield Line(path, number, {name.strip(): cell for name, cell in zip(header, cells, strict=True)})
        elif cells:
            findings.row_fault(
                path,
                number,
                f"has {len(cells)} cells where the header has {len(header)}: quote or complete it",
            )
        number = reader.line_num + 1


def _separator(text: str) -> str:
    header = text.partition("\n")[0]
    return "," if "," in header else next((mark for mark in ";\t" if mark in header), ",")


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_columns(path: Path, content: bytes, findings: Findings) -> list[Line]:
    """The rows of a Parquet or Arrow file; nulls are left out, as those of keys that a row never had."""
    import pyarrow  # noqa: PLC0415  (slow, and only for this)

    try:
        table = _table(content)
        rows = [row for batch in table.to_batches(1024) for row in batch.to_pylist()]
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError, ValueError) as error:
        findings.fault(path, 0, f"can't be read as {_kind(content)}: {error}")
        return []
    if not rows:
        findings.fault(path, 0, "has no rows")
    return [Line(path, number, _without_nulls(row)) for number, row in enumerate(rows, 1)]


def _table(content: bytes) -> Any:
    import pyarrow  # noqa: PLC0415
    from pyarrow import ipc, parquet  # noqa: PLC0415

    source = pyarrow.BufferReader(content)
    if content.startswith(b"PAR1"):
        return parquet.read_table(source)
    return (
        ipc.open_file(source).read_all()
        if content.startswith(b"ARROW1")
        else ipc.open_stream(source).read_all()
    )


def _kind(content: bytes) -> str:
    return "Parquet" if content.startswith(b"PAR1") else "Arrow"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
