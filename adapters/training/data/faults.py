"""What is wrong with a data file, always with file and line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from manylora.adapters.training.data.rows import Origin
from manylora.adapters.training.errors import DataError

MAX_SHOWN = 30  # faults printed; all are counted
MAX_SKIPPED_SHOWN = 10  # rows that are left out and told one by one; all are counted


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
    """Faults (nothing is trained with them) and warnings (told, and trained anyway) of a run's data.

    Faults of single rows are forgiven, and the rows left out, as long as there are few enough of them.
    """

    def __init__(self, skip_bad_rows: int = 0) -> None:
        """``skip_bad_rows``: how many rows with faults may be left out."""
        self.faults: list[Finding] = []
        self.warnings: list[Finding] = []
        self._bad: dict[tuple[Path, int, int], str] = {}  # rows with faults, and the first of each
        self._row_faults: list[Finding] = []
        self.skip_bad_rows = skip_bad_rows

    def fault(self, path: Path, line: int, message: str) -> None:
        """Record what is wrong with the file, or with all of its rows."""
        self.faults.append(Finding(path, line, message))

    def row_fault(self, path: Path, line: int, message: str, row: int = 0) -> None:
        """Record what is wrong with one row, which may be left out for it; ``row``: of a JSON array."""
        message = f"{message} (row {row})" if row else message
        self._row_faults.append(Finding(path, line, message))
        self._bad.setdefault((path, line, row), message)

    def warn(self, path: Path, line: int, message: str) -> None:
        self.warnings.append(Finding(path, line, message))

    def is_bad(self, origin: Origin) -> bool:
        """Whether the row from there has a fault."""
        return (origin.path, origin.line, origin.row) in self._bad

    def raise_any(self) -> None:
        """Raise the faults found, unless they are of few enough rows.

        Raises:
            DataError: with the first faults, one a line, and how many more there are.
        """
        faults = [*self.faults, *(self._row_faults if len(self._bad) > self.skip_bad_rows else ())]
        if not faults:
            return
        lines = [str(finding) for finding in sorted(faults)[:MAX_SHOWN]]
        hidden = len(faults) - len(lines)
        lines += [f"and {hidden} more faults"] if hidden else []
        if self.skip_bad_rows and len(self._bad) > self.skip_bad_rows:
            lines.append(f"{len(self._bad)} rows have faults, more than --skip-bad-rows {self.skip_bad_rows}")
        raise DataError("\n".join(lines))

    def tell_skipped(self) -> None:
        """Warn of the rows that are left out: the first ones by line, and how many of each file."""
        counts: dict[Path, int] = {}
        for (path, line, _), message in sorted(self._bad.items()):
            counts[path] = counts.get(path, 0) + 1
            if counts[path] <= MAX_SKIPPED_SHOWN:
                self.warn(path, line, f"skipped: {message}")
        for path, count in counts.items():
            self.warn(path, 0, f"{count} rows with faults skipped (--skip-bad-rows {self.skip_bad_rows})")
