"""What a server looks after while it runs.

That is what other processes left half done, files that are back, names that failed long ago, and revisions
that no name has.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection

from manylora.adapters.errors import AdapterError
from manylora.server.names.recurring import Recurring

logger = logging.getLogger(__name__)

EVERY_SECONDS = 30.0
ORPHANS_EVERY = 20  # passes: an orphan is deleted when it was one ten minutes ago already


class Upkeep(Recurring):
    """Repeats a pass as long as it runs. The changes are news that the follower hears like any others."""

    def __init__(
        self,
        tend: Callable[[], Awaitable[tuple[str, ...]]],
        delete_orphans: Callable[[], Awaitable[Collection[str]]],
    ) -> None:
        """``tend()`` does what is to be done about names, and returns those that it changed.

        ``delete_orphans()`` deletes revisions that no name has had since it was last called; returns them.
        """
        super().__init__(EVERY_SECONDS, self.look)
        self._tend = tend
        self._delete_orphans = delete_orphans
        self._passes = 0
        self._failing = False

    async def look(self) -> None:
        """One pass."""
        self._passes += 1
        try:
            names = await self._tend()
            orphans = await self._delete_orphans() if self._passes % ORPHANS_EVERY == 0 else ()
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
