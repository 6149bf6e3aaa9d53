"""What has been done and the registry has not been told, added to its audit log every second."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from manylora.adapters.registry.tenants.audit import Audit, AuditRecord
from manylora.server.tenants.saving import SavedEverySecond

logger = logging.getLogger(__name__)

MAX_UNSAVED: Final = 10_000  # beyond that the oldest go, while the registry is away


class AuditTrail:
    """Lives on the event loop."""

    def __init__(self, audit: Audit, keep_days: int) -> None:
        self._audit = audit
        self._unsaved: list[AuditRecord] = []
        saved = SavedEverySecond("the audit log", self._save, audit.remove_before, keep_days)
        self.start, self.save, self.close = saved.start, saved.save, saved.close

    def add(self, record: AuditRecord) -> None:
        """Something has been done."""
        self._unsaved.append(record)
        if len(self._unsaved) > MAX_UNSAVED:
            lost = self._unsaved.pop(0)
            logger.error("the audit log can't be kept: lost %s %s by %s", lost.action, lost.target, lost.who)

    async def _save(self) -> None:
        told = tuple(self._unsaved)
        if told:  # and if whoever waits is cancelled, all of it
            await asyncio.shield(asyncio.ensure_future(self._add(told)))

    async def _add(self, told: tuple[AuditRecord, ...]) -> None:
        await asyncio.to_thread(self._audit.add, told)
        gone = {record.id for record in told}
        self._unsaved = [record for record in self._unsaved if record.id not in gone]
