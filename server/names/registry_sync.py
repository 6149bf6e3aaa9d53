"""Keeps the mirror up to date with the registry, and saves there what this server has counted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from manylora.adapters.errors import AdapterError
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.periodic_task import PeriodicTask

logger = logging.getLogger(__name__)

_FOLLOW_SECONDS = 0.3  # how old what is known of other servers' changes may be
_SAVE_EVERY = 30  # rounds: last-used times and arms' counts are no news that anybody waits for


class RegistrySync:
    """Follows the registry a few times a second, and saves counts there now and then."""

    def __init__(self, mirror: RegistryMirror, save_counts: Callable[[], Awaitable[None]]) -> None:
        """``save_counts()`` adds what this server has counted to the registry."""
        self._mirror = mirror
        self._save_counts = save_counts
        self._task = PeriodicTask(_FOLLOW_SECONDS, self._follow)
        self._saved: dict[str, float] = {}  # what the registry knows of when this server used names
        self._rounds = 0
        self._failing = False

    def start(self) -> None:
        """Begin to follow."""
        self._task.start()

    async def close(self) -> None:
        """Stop following, and save what is not saved yet."""
        await self._task.close()
        await self._round(save=True)

    async def _follow(self) -> None:
        self._rounds += 1
        await self._round(save=self._rounds % _SAVE_EVERY == 0)

    async def _round(self, *, save: bool) -> None:
        try:
            if save:
                await self._save()
            await self._mirror.follow()
        except AdapterError as error:
            if not self._failing:
                logger.warning("serving what is known: %s", error)
            self._failing = True
        else:
            self._failing = False

    async def _save(self) -> None:
        used = {name: at for name, at in self._mirror.used.items() if self._saved.get(name) != at}
        if used:
            await self._mirror.run(lambda registry: registry.names.touch(used))
            self._saved.update(used)
        await self._save_counts()
