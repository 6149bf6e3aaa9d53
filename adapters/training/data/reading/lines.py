"""What a data file is once it has been read: objects with the lines that they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Line:
    """One object of a data file, with its line number (of a Parquet or Arrow file: its row)."""

    path: Path
    number: int  # counted from 1
    value: dict[str, Any]
    row: int = 0  # of a JSON array, where one line may have several; counted from 1


@dataclass(frozen=True, slots=True)
class DataFile:
    """The objects of one file and the digest of its bytes."""

    path: Path
    digest: str  # hex SHA-256
    lines: tuple[Line, ...]
