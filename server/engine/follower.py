"""What this server tells the registry from time to time, and what it hears of other servers there."""

from __future__ import annotations

import asyncio
import logging
import time

from adapters.errors import AdapterError
from server.engine.catalogue import Catalogue
from server.engine.experiments import Experiments

logger = logging.getLogger(__name__)

_FOLLOW_SECONDS = 0.3  # how old what is known of other servers' changes may be
_TELL_EVERY = 30  # rounds: last-used times and arms' counts are no news that anybody waits for


class Follower:
    """Keeps catalogue and registry in step while it runs."""

    def __init__(self, catalogue: Catalogue, experiments: Experiments) -> None:
        self._catalogue = catalogue
        self._experiments = experiments
        self.used: dict[str, float] = {}  # unix seconds, of names that requests used since the start
        self._untold: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def touch(self, name: str) -> None:
        """A request uses ``name`` now."""
        self.used[name] = time.time()
        self._untold.add(name)

    def start(self) -> None:
        """Begin to follow."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop following, and tell what has not been told."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._round(tell=True)

    async def _run(self) -> None:
        rounds = 0
        while True:
            await asyncio.sleep(_FOLLOW_SECONDS)
            rounds += 1
            await self._round(tell=rounds % _TELL_EVERY == 0)

    async def _round(self, *, tell: bool) -> None:
        try:
            if tell:
                await self._tell()
            await self._catalogue.follow()
        except AdapterError as error:
            if not self._failing:
                logger.warning("serving what is known: %s", error)
            self._failing = True
        else:
            self._failing = False

    async def _tell(self) -> None:
        used = {name: self.used[name] for name in self._untold if name in self.used}
        if used:
            await self._catalogue.run(lambda registry: registry.touch(used))
            self._untold.clear()
        await self._experiments.tell()
