"""Keeps the mirror up to date with the registry, and tells the registry what this server has counted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from manylora.adapters.errors import AdapterError
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.periodic_task import PeriodicTask

logger = logging.getLogger(__name__)

_FOLLOW_SECONDS = 0.3  # how old what is known of other servers' changes may be
_TELL_EVERY = 30  # rounds: last-used times and arms' counts are no news that anybody waits for


class RegistrySync:
    """Exchanges news with the registry, a few times a second while it runs."""

    def __init__(self, mirror: RegistryMirror, tell_more: Callable[[], Awaitable[None]]) -> None:
        """``tell_more()`` tells the registry whatever else this server has counted."""
        self._mirror = mirror
        self._tell_more = tell_more
        self._task = PeriodicTask(_FOLLOW_SECONDS, self._follow)
        self._told: dict[str, float] = {}  # what the registry knows of when this server used names
        self._rounds = 0
        self._failing = False

    def start(self) -> None:
        """Begin to follow."""
        self._task.start()

    async def close(self) -> None:
        """Stop following, and tell what has not been told."""
        await self._task.close()
        await self._round(tell=True)

    async def _follow(self) -> None:
        self._rounds += 1
        await self._round(tell=self._rounds % _TELL_EVERY == 0)

    async def _round(self, *, tell: bool) -> None:
        try:
            if tell:
                await self._tell()
            await self._mirror.follow()
        except AdapterError as error:
            if not self._failing:
                logger.warning("serving what is known: %s", error)
            self._failing = True
        else:
            self._failing = False

    async def _tell(self) -> None:
        used = {name: at for name, at in self._mirror.used.items() if self._told.get(name) != at}
        if used:
            await self._mirror.run(lambda registry: registry.touch(used))
            self._told.update(used)
        await self._tell_more()
