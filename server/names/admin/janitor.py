"""Cleans up while a server runs: what dead processes left half done, and revisions that no name has."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection

from manylora.adapters.errors import AdapterError
from manylora.server.periodic_task import PeriodicTask

logger = logging.getLogger(__name__)

EVERY_SECONDS = 30.0
ORPHANS_EVERY = 20  # passes: an orphan is deleted when it was one ten minutes ago already


class Janitor:
    """Repeats a pass as long as it runs. The mirror hears of its changes like of any others."""

    def __init__(
        self,
        clean_up: Callable[[], Awaitable[tuple[str, ...]]],
        delete_orphans: Callable[[], Awaitable[Collection[str]]],
        orphans_every: int = ORPHANS_EVERY,
    ) -> None:
        """``clean_up()`` does what is to be done about names, and returns those that it changed.

        ``delete_orphans()`` deletes revisions that no name has had since it was last called; returns them.
        """
        self._clean_up = clean_up
        self._delete_orphans = delete_orphans
        self._orphans_every = orphans_every  # passes
        self._passes = 0
        self._failing = False
        self._task = PeriodicTask(EVERY_SECONDS, self.clean_up)

    def start(self) -> None:
        """Begin; the first pass comes after the first pause."""
        self._task.start()

    async def close(self) -> None:
        """Stop, wherever it is."""
        await self._task.close()

    async def clean_up(self) -> None:
        """One pass."""
        self._passes += 1
        try:
            names = await self._clean_up()
            orphans = await self._delete_orphans() if self._passes % self._orphans_every == 0 else ()
        except AdapterError as error:
            if not self._failing:
                logger.warning("the adapter registry is not looked after: %s", error)
            self._failing = True
        else:
            self._failing = False
            if names:
                logger.warning(
                    "put right, as a process died, files came back or a first upload failed an hour ago: %s",
                    ", ".join(names),
                )
            if orphans:
                logger.warning("deleted revisions that no name has: %s", ", ".join(sorted(orphans)))
