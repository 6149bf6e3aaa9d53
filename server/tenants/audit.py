"""What has been done and the registry has not been told, added to its audit log every second."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from manylora.adapters.errors import AdapterError
from manylora.adapters.registry.tenants.audit import Audit, AuditRecord
from manylora.server.periodic_task import PeriodicTask

logger = logging.getLogger(__name__)

SAVE_SECONDS: Final = 1.0  # for which what has been done is in memory alone
MAX_UNSAVED: Final = 10_000  # beyond that the oldest go, while the registry is away
DAY: Final = 86_400
_FORGET_EVERY: Final = 3600  # rounds


class AuditTrail:
    """Lives on the event loop."""

    def __init__(self, audit: Audit, keep_days: int) -> None:
        self._audit = audit
        self._keep_days = keep_days
        self._unsaved: list[AuditRecord] = []
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

    def add(self, record: AuditRecord) -> None:
        """Something has been done."""
        self._unsaved.append(record)
        if len(self._unsaved) > MAX_UNSAVED:
            lost = self._unsaved.pop(0)
            logger.error("the audit log can't be kept: lost %s %s by %s", lost.action, lost.target, lost.who)

    async def save(self) -> None:
        """Tell the registry what is new. If that fails it stays new.

        Raises:
            StoreError: the registry can't be written.
        """
        async with self._saving:
            told = tuple(self._unsaved)
            if told:
                await asyncio.shield(asyncio.ensure_future(self._save(told)))

    async def _save(self, told: tuple[AuditRecord, ...]) -> None:
        await asyncio.to_thread(self._audit.add, told)
        gone = {record.id for record in told}
        self._unsaved = [record for record in self._unsaved if record.id not in gone]

    async def _round(self) -> None:
        self._rounds += 1
        await self._save_or_warn(forget=self._rounds % _FORGET_EVERY == 1)

    async def _save_or_warn(self, *, forget: bool = False) -> None:
        try:
            await self.save()
            if forget:
                await asyncio.to_thread(self._audit.remove_before, time.time() - self._keep_days * DAY)
        except AdapterError as error:
            if not self._failing:
                logger.warning("the audit log is kept in memory: %s", error)
            self._failing = True
        else:
            self._failing = False
