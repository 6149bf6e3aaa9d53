"""What still needs a file: a file that is read is neither deleted nor expires."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

FileReader = Callable[[str], Awaitable[str | None]]
"""Says, of a file's id, what still has to read it ("a batch that has not ended"); None: nothing it knows."""


def files_in_use(*readers: FileReader) -> FileReader:
    """One that asks all ``readers``, in order, until one needs the file."""

    async def reader_of(file_id: str) -> str | None:
        for reader in readers:
            if (what := await reader(file_id)) is not None:
                return what
        return None

    return reader_of
