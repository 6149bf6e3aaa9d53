"""Counts what tenants take, in memory, and adds it to the registry every second."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from manylora.adapters.errors import AdapterError
from manylora.adapters.registry.tenants.records import TenantRecord
from manylora.adapters.registry.tenants.usage import HOUR, Counts, Place, Usage
from manylora.server.periodic_task import PeriodicTask

logger = logging.getLogger(__name__)

SAVE_SECONDS: Final = 1.0  # for which what has been counted is in memory alone
KEEP_DAYS: Final = 400
_FORGET_EVERY: Final = 3600  # rounds


class UsageCounter:
    """What tenants took and the registry has not been told. Lives on the event loop."""

    def __init__(self, usage: Usage, saved: Callable[[str, int], None]) -> None:
        """``saved`` hears of the tokens of tenants, by their ids, that the registry has been told of."""
        self._usage = usage
        self._saved = saved
        self._unsaved: dict[Place, Counts] = {}
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

    def add(self, tenant: TenantRecord, model: str, counts: Counts) -> None:
        """A request of a tenant has ended."""
        now = int(time.time())
        place = Place(tenant.id, tenant.name, now - now % HOUR, model)
        before = self._unsaved.get(place)
        self._unsaved[place] = counts if before is None else before.plus(counts)

    async def save(self) -> None:
        """Add everything that is new to the registry. If that fails it stays new.

        Raises:
            StoreError: the registry can't be written.
        """
        async with self._saving:
            unsaved, self._unsaved = self._unsaved, {}
            if not unsaved:
                return
            saving = asyncio.ensure_future(asyncio.to_thread(self._usage.add, unsaved))

            def keep(done: asyncio.Future[None]) -> None:
                if done.cancelled() or done.exception() is not None:
                    for place, counts in unsaved.items():
                        since = self._unsaved.get(place)
                        self._unsaved[place] = counts if since is None else counts.plus(since)
                    return
                for place, counts in unsaved.items():
                    self._saved(place.tenant, counts.prompt_tokens + counts.completion_tokens)

            saving.add_done_callback(keep)
            await asyncio.shield(saving)  # whoever is cancelled while it waits must not count twice

    async def _round(self) -> None:
        self._rounds += 1
        await self._save_or_warn(forget=self._rounds % _FORGET_EVERY == 1)

    async def _save_or_warn(self, *, forget: bool = False) -> None:
        try:
            await self.save()
            if forget:
                oldest = int(time.time()) - KEEP_DAYS * 24 * HOUR
                await asyncio.to_thread(self._usage.remove_before, oldest)
        except AdapterError as error:
            if not self._failing:
                logger.warning("what tenants take is kept in memory for now: %s", error)
            self._failing = True
        else:
            self._failing = False
