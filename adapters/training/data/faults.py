"""What is wrong with a data file, always with file and line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from manylora.adapters.training.errors import DataError

MAX_SHOWN = 30  # faults printed; all are counted


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One sentence about one line of a data file (line 0: the file as a whole)."""

    path: Path
    line: int  # counted from 1
    message: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{where}: {self.message}"


class Findings:
    """Faults (nothing is trained with them) and warnings (told, and trained anyway) of a run's data."""

    def __init__(self) -> None:
        self.faults: list[Finding] = []
        self.warnings: list[Finding] = []

    def fault(self, path: Path, line: int, message: str) -> None:
        self.faults.append(Finding(path, line, message))

    def warn(self, path: Path, line: int, message: str) -> None:
        self.warnings.append(Finding(path, line, message))

    def raise_any(self) -> None:
        """Raise the faults found.

        Raises:
            DataError: with the first faults, one a line, and how many more there are.
        """
        if not self.faults:
            return
        lines = [str(finding) for finding in sorted(self.faults)[:MAX_SHOWN]]
        hidden = len(self.faults) - len(lines)
        raise DataError("\n".join([*lines, f"and {hidden} more faults"] if hidden else lines))
