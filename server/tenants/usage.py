"""Counts what tenants take, in memory, and adds it to the registry every second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from manylora.adapters.registry.tenants.records import TenantRecord
from manylora.adapters.registry.tenants.usage import HOUR, Counts, Place, Usage
from manylora.server.tenants.saving import SavedEverySecond


class UsageCounter:
    """What tenants took and the registry has not been told. Lives on the event loop."""

    def __init__(self, usage: Usage, told: Callable[[str, int], None], keep_days: int) -> None:
        """``told`` hears of the tokens of tenants, by their ids, that the registry has been told of."""
        self._usage = usage
        self._told = told
        self._unsaved: dict[Place, Counts] = {}
        saved = SavedEverySecond(
            "what tenants take", self._save, lambda when: usage.remove_before(int(when)), keep_days
        )
        self.start, self.save, self.close = saved.start, saved.save, saved.close

    def add(self, tenant: TenantRecord, model: str, counts: Counts) -> None:
        """A request of a tenant has ended."""
        now = int(time.time())
        place = Place(tenant.id, tenant.name, now - now % HOUR, model)
        self._add(place, counts)

    def _add(self, place: Place, counts: Counts) -> None:
        before = self._unsaved.get(place)
        self._unsaved[place] = counts if before is None else before.plus(counts)

    async def _save(self) -> None:
        unsaved, self._unsaved = self._unsaved, {}
        if not unsaved:
            return
        saving = asyncio.ensure_future(asyncio.to_thread(self._usage.add, unsaved))
        saving.add_done_callback(lambda done: self._saved(done, unsaved))
        await asyncio.shield(saving)  # whoever is cancelled while it waits must not count twice

    def _saved(self, done: asyncio.Future[None], counted: Mapping[Place, Counts]) -> None:
        """The registry has been told, or what it was to be told is new again."""
        failed = done.cancelled() or done.exception() is not None
        for place, counts in counted.items():
            if failed:
                self._add(place, counts)
            else:
                self._told(place.tenant, counts.prompt_tokens + counts.completion_tokens)
