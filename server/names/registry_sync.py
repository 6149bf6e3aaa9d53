"""What this server tells the registry from time to time, and what it hears of other servers there."""

from __future__ import annotations

import logging
import time

from manylora.adapters.errors import AdapterError
from manylora.server.experiments.experiments import Experiments
from manylora.server.names.recurring import Recurring
from manylora.server.names.registry_mirror import Catalogue

logger = logging.getLogger(__name__)

_FOLLOW_SECONDS = 0.3  # how old what is known of other servers' changes may be
_TELL_EVERY = 30  # rounds: last-used times and arms' counts are no news that anybody waits for


class Follower(Recurring):
    """Keeps catalogue and registry in step while it runs."""

    def __init__(self, catalogue: Catalogue, experiments: Experiments) -> None:
        super().__init__(_FOLLOW_SECONDS, self._follow)
        self._catalogue = catalogue
        self._experiments = experiments
        self.used: dict[str, float] = {}  # unix seconds, of names that requests used since the start
        self._untold: set[str] = set()
        self._rounds = 0
        self._failing = False

    def touch(self, name: str) -> None:
        """A request uses ``name`` now."""
        self.used[name] = time.time()
        self._untold.add(name)

    async def close(self) -> None:
        """Stop following, and tell what has not been told."""
        await super().close()
        await self._round(tell=True)

    async def _follow(self) -> None:
        self._rounds += 1
        await self._round(tell=self._rounds % _TELL_EVERY == 0)

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
            await self._catalogue.run(lambda registry: registry.names.touch(used))
            self._untold.clear()
        await self._experiments.tell()
