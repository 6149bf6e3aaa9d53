"""The tenants and their keys as this process last read them, so that no request asks a database.

They are read at start, after every change made through this server, and twice a second for what other servers
of the registry have changed. While the database can't be asked, what was read last stays.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from manylora.adapters.errors import AdapterError, TenantNotFound
from manylora.adapters.registry.tenants.records import KeyRecord, TenantRecord, digest_of_key
from manylora.adapters.registry.tenants.taken import Taken
from manylora.adapters.registry.tenants.tenants import Snapshot, Tenants
from manylora.adapters.registry.tenants.usage import Usage
from manylora.server.periodic_task import PeriodicTask
from manylora.server.tenants.holder import KeyHolder
from manylora.server.tenants.meters import Meters
from manylora.server.tenants.running import RunningRequests
from manylora.server.tenants.usage import UsageCounter

logger = logging.getLogger(__name__)

T = TypeVar("T")

FOLLOW_SECONDS: Final = 0.5  # how old what is known of other servers' changes may be


class TenantDirectory:
    """Tenants by key, by name and by id. Lives on the event loop."""

    def __init__(self, tenants: Tenants, usage: Usage, taken: Taken) -> None:
        """Nothing is read until :meth:`start`."""
        self._registry = tenants
        self.any = False  # whether there are tenants
        self.meters = Meters(taken, lambda: self.any)
        self.usage = UsageCounter(usage, self.meters.saved)
        self.running = RunningRequests()
        self._names: dict[str, TenantRecord] = {}
        self._ids: dict[str, TenantRecord] = {}
        self._keys: dict[str, KeyRecord] = {}  # by digest
        self._generation = -1
        self._reading = asyncio.Lock()  # so that what is read first is taken over first
        self._task = PeriodicTask(FOLLOW_SECONDS, self._follow)
        self._failing = False

    async def start(self) -> None:
        """Read everything, and begin to follow.

        Raises:
            StoreError: the database can't be read.
        """
        await self._read()
        self._task.start()
        self.usage.start()
        self.meters.start()

    async def close(self) -> None:
        """Stop following, and save what is not saved yet."""
        await self._task.close()
        await self.usage.close()
        await self.meters.close()

    def find(self, key: str) -> KeyHolder | None:
        """Who has that key, as read from a header; None for a key that is revoked, expired or nobody's.

        The time it takes tells nothing of any key but by its digest, which nobody can choose.
        """
        digest = digest_of_key(key)
        record = self._keys.get(digest)
        if record is None or not hmac.compare_digest(record.digest, digest):
            return None
        if record.expires is not None and record.expires <= time.time():
            return None
        tenant = self._ids.get(record.tenant)
        return None if tenant is None else KeyHolder(tenant, record)

    def by_id(self, tenant_id: str) -> TenantRecord | None:
        """The tenant of that id, or None if it is gone."""
        return self._ids.get(tenant_id)

    def has(self, name: str) -> bool:
        """Whether a tenant is called so."""
        return name in self._names

    def get(self, name: str) -> TenantRecord:
        """The tenant of that name.

        Raises:
            TenantNotFound: there is none.
        """
        try:
            return self._names[name]
        except KeyError:
            raise TenantNotFound(f"there is no tenant {name[:140]!r}") from None

    def all(self) -> Sequence[TenantRecord]:
        """Every tenant, by name."""
        return [self._names[name] for name in sorted(self._names)]

    def keys_of(self, tenant: TenantRecord) -> Sequence[KeyRecord]:
        """The tenant's keys, by time; those that have expired are not told."""
        now = time.time()
        own = (key for key in self._keys.values() if key.tenant == tenant.id)
        return [key for key in own if key.expires is None or key.expires > now]

    async def change(self, work: Callable[[Tenants], T]) -> T:
        """Change something in the registry; this server acts on it when this returns."""
        result = await asyncio.to_thread(work, self._registry)
        await self._read()
        return result

    async def _read(self) -> None:
        async with self._reading:
            since = self._generation
            found = await asyncio.to_thread(self._registry.snapshot, since)
            if found is not None:
                self._take(found)

    def _take(self, found: Snapshot) -> None:
        self._generation = found.generation
        self._names = {tenant.name: tenant for tenant in found.tenants}
        self._ids = {tenant.id: tenant for tenant in found.tenants}
        self._keys = {key.digest: key for key in found.keys}
        self.any = bool(found.tenants)
        for key in found.keys:
            if key.ended:
                self.running.end(key.id)
        self.meters.forget_others(set(self._ids))

    async def _follow(self) -> None:
        try:
            await self._read()
        except AdapterError as error:
            if not self._failing:
                logger.warning("the keys of tenants stay as they were known: %s", error)
            self._failing = True
        else:
            self._failing = False
