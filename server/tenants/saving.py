"""What is counted in memory and saved every second."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from manylora.adapters.errors import AdapterError
from manylora.server.periodic_task import PeriodicTask

logger = logging.getLogger(__name__)

SAVE_SECONDS: Final = 1.0  # for which what is new is in memory alone
_DAY: Final = 86_400  # seconds
_FORGET_EVERY: Final = 3600  # rounds


class SavedEverySecond:
    """Saves what is new, and forgets what is old. Lives on the event loop."""

    def __init__(
        self,
        name: str,
        save: Callable[[], Awaitable[None]],
        remove_before: Callable[[float], object],
        keep_days: int,
    ) -> None:
        """``name`` is how the log calls it.

        Args:
            name: what is kept.
            save: tells the registry what is new; if it raises :class:`AdapterError` that stays new.
            remove_before: forgets what is older than a time, in unix seconds. Blocks.
            keep_days: for so long everything is kept.
        """
        self._name = name
        self._save = save
        self._remove_before = remove_before
        self._keep_days = keep_days
        self._saving = asyncio.Lock()
        self._task = PeriodicTask(SAVE_SECONDS, self._round)
        self._rounds = 0
        self._failing = False

    def start(self) -> None:
        """Begin to save."""
        self._task.start()

    async def close(self) -> None:
        """Save what is left."""
        await self._task.close()
        await self._save_or_warn()

    async def save(self) -> None:
        """Save what is new, now.

        Raises:
            StoreError: the registry can't be written.
        """
        async with self._saving:
            await self._save()

    async def _round(self) -> None:
        self._rounds += 1
        await self._save_or_warn(forget=self._rounds % _FORGET_EVERY == 1)

    async def _save_or_warn(self, *, forget: bool = False) -> None:
        try:
            await self.save()
            if forget:
                await asyncio.to_thread(self._remove_before, time.time() - self._keep_days * _DAY)
        except AdapterError as error:
            if not self._failing:
                logger.warning("%s is kept in memory for now: %s", self._name, error)
            self._failing = True
        else:
            self._failing = False
