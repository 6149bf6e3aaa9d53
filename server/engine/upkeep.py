"""What a server looks after while it runs: what other processes left half done, and files that are back."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from adapters.errors import AdapterError
from server.engine.recurring import Recurring

logger = logging.getLogger(__name__)

EVERY_SECONDS = 30.0


class Upkeep(Recurring):
    """Repeats a pass as long as it runs. The changes are news that the follower hears like any others."""

    def __init__(self, tend: Callable[[], Awaitable[tuple[str, ...]]]) -> None:
        """``tend()`` does what is to be done; returns the names that it changed."""
        super().__init__(EVERY_SECONDS, self.look)
        self._tend = tend
        self._failing = False

    async def look(self) -> None:
        """One pass."""
        try:
            names = await self._tend()
        except AdapterError as error:
            if not self._failing:
                logger.warning("the adapter registry is not looked after: %s", error)
            self._failing = True
        else:
            self._failing = False
            if names:
                logger.warning("put right after a process died or files came back: %s", ", ".join(names))
