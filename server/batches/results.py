"""The two files that a batch writes as it goes on: answers, and what went wrong. They outlive the process."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self


class Results:
    """Open result files; a line is in the system's hands, whole, before the next request is counted."""

    def __init__(self, output: Path, errors: Path) -> None:
        """Go on with what ``output`` and ``errors`` hold; a line that a process left half written is cut off.

        Raises:
            OSError: they can't be written.
        """
        self._paths = output, errors
        self.done: set[str] = set()  # custom ids of requests that are through
        self.completed = 0
        self.failed = 0
        for path, failed in ((output, False), (errors, True)):
            for custom_id in _whole_lines(path):
                self.done.add(custom_id)
                self.failed += failed
                self.completed += not failed
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._output = os.open(output, flags, 0o600)
        self._errors = os.open(errors, flags, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._output, self._errors):
            os.fsync(file)
            os.close(file)

    def write(self, line: bytes, *, failed: bool) -> None:
        """Append a line.

        Raises:
            OSError: there is no room for it.
        """
        left = memoryview(line)
        while left:
            left = left[os.write(self._errors if failed else self._output, left) :]
        self.failed += failed
        self.completed += not failed


def _whole_lines(path: Path) -> Iterator[str]:
    """The custom ids in a file of results, which afterwards ends behind its last whole line."""
    if not path.exists():
        return
    whole = 0
    with path.open("r+b") as file:
        for line in file:
            try:
                custom_id = json.loads(line)["custom_id"]
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            yield custom_id
        file.truncate(whole)
