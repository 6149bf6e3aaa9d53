"""A file of rows of any kind: JSON Lines, JSON, CSV, TSV, Parquet, Arrow, each compressed or not."""

from __future__ import annotations

import codecs
import hashlib
from pathlib import Path

from manylora.adapters.training.data.faults import Findings
from manylora.adapters.training.data.reading.jsonl import read_json_lines
from manylora.adapters.training.data.reading.lines import DataFile, Line
from manylora.adapters.training.data.reading.tables import read_columns, read_separated
from manylora.adapters.training.data.reading.unpack import SUFFIXES, unpack
from manylora.adapters.training.data.reading.whole_json import IsRow, is_whole, read_whole

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEPARATORS = {".csv": None, ".tsv": "\t", ".tab": "\t"}
_COLUMNS = {".parquet", ".arrow", ".pq"}
ROW_SUFFIXES = frozenset({".jsonl", ".json", ".ndjson", *_SEPARATORS, *_COLUMNS})


def suffix_of(path: Path) -> str:
    """The suffix that tells a file's kind, without that of its compression: ``.jsonl`` of ``a.jsonl.gz``."""
    named = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
    return named.suffix.lower()


def read_file(path: Path, findings: Findings, is_row: IsRow) -> DataFile:
    """Read ``path``; what can't be read is a fault of its line and left out.

    ``is_row`` tells whether an object is a row of a known format, for a JSON file that is a single object.
    """
    try:
        packed = path.read_bytes()
    except OSError as error:
        findings.fault(path, 0, f"can't be read: {(error.strerror or str(error)).lower()}")
        return DataFile(path, "", ())
    digest = hashlib.sha256(packed).hexdigest()
    content = unpack(path, packed, findings)
    lines = [] if content is None else _lines(path, content, findings, is_row)
    return DataFile(path, digest, tuple(lines))


def _lines(path: Path, content: bytes, findings: Findings, is_row: IsRow) -> list[Line]:
    suffix = suffix_of(path)
    if not content.strip():
        findings.fault(path, 0, "is empty: write one JSON object a line")
    elif suffix in _COLUMNS or content.startswith(b"PAR1"):
        return read_columns(path, content, findings)
    elif content.startswith(_UTF16):
        findings.fault(path, 1, "is UTF-16: save it as UTF-8")
    elif suffix in _SEPARATORS:
        return read_separated(path, content, findings, _SEPARATORS[suffix])
    elif suffix == ".json" and is_whole(content.removeprefix(codecs.BOM_UTF8)):
        return read_whole(path, content, findings, is_row)
    elif content.startswith(codecs.BOM_UTF8):
        findings.fault(path, 1, "begins with a byte order mark (BOM): save it as UTF-8 without BOM")
    else:
        return read_json_lines(path, content, findings)
    return []
