"""What a server looks after while it runs: what other processes left half done, and files that are back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from adapters.errors import AdapterError

logger = logging.getLogger(__name__)

EVERY_SECONDS = 30.0


class Upkeep:
    """Repeats a pass as long as it runs. The changes are news that the follower hears like any others."""

    def __init__(self, tend: Callable[[], Awaitable[tuple[str, ...]]]) -> None:
        """``tend()`` does what is to be done; returns the names that it changed."""
        self._tend = tend
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop, once the pass that runs has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.look()

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
