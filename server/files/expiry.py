"""Files and uploads go when their time has come, and what crashes left of some goes as well."""

from __future__ import annotations

import asyncio
import logging

from manylora.adapters.errors import StoreError
from manylora.server.files.readers import FileReader
from manylora.server.files.stored_files import StoredFiles
from manylora.server.files.uploads import FileUploads
from manylora.server.periodic_task import PeriodicTask

logger = logging.getLogger(__name__)

_LOOK_EVERY = 30.0  # seconds
_SWEEP_EVERY = 3600.0


class FileExpiry:
    """Looks for such files as long as the server runs."""

    def __init__(self, files: StoredFiles, uploads: FileUploads, reader_of: FileReader) -> None:
        """Leaves files of which ``reader_of`` says that something needs them."""
        self._files, self._uploads, self._reader_of = files, uploads, reader_of
        self._tasks = [PeriodicTask(_LOOK_EVERY, self._expire), PeriodicTask(_SWEEP_EVERY, self._sweep)]

    async def start(self) -> None:
        """Look once, then every so often."""
        await self._sweep()
        await self._expire()
        for task in self._tasks:
            task.start()

    async def close(self) -> None:
        """Stop looking."""
        for task in self._tasks:
            await task.close()

    async def _expire(self) -> None:
        try:
            await self._files.expire(self._reader_of)
            await self._uploads.expire()
        except (OSError, StoreError) as error:
            logger.warning("files that have expired stay for now: %s", error)

    async def _sweep(self) -> None:
        try:
            await asyncio.to_thread(self._files.sweep)
        except (OSError, StoreError) as error:
            logger.warning("what is left of uploads stays for now: %s", error)
