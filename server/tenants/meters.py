"""The limits of all tenants: what each request takes of them, and how servers of one registry share them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar
from uuid import uuid4

from manylora.adapters.errors import AdapterError
from manylora.adapters.registry.tenants.records import NO_LIMITS, TenantLimits, TenantRecord
from manylora.adapters.registry.tenants.taken import ALIVE_SECONDS, COUNTS_SECONDS, Asked, Key, Taken
from manylora.server.errors import RateLimited
from manylora.server.periodic_task import PeriodicTask
from manylora.server.tenants.limits import NOTHING, Cost
from manylora.server.tenants.meter import Meter, Reservation

logger = logging.getLogger(__name__)

T = TypeVar("T")

SHARE_SECONDS: Final = 0.5  # how old what is known of other servers may be
ASK_SECONDS: Final = 2.0  # that a request waits for the registry
_SAY_EVERY: Final = 5  # rounds, after which a server says again that it is there


class Meters:
    """Meters by tenant and adapter, each made when it is first needed. Event loop."""

    def __init__(self, taken: Taken, any_tenants: Callable[[], bool]) -> None:
        """Nothing is shared until :meth:`start`; ``any_tenants`` says whether there is anything to share."""
        self._taken = taken
        self._any_tenants = any_tenants
        self._meters: dict[Key, Meter] = {}
        self._server = uuid4().hex
        self._task = PeriodicTask(SHARE_SECONDS, self._round)
        self._asking = asyncio.Lock()
        self._rounds = 0
        self._arrived: float | None = None  # when this server said that it is there
        self._others_seen = -math.inf  # when there were last others
        self._shared = False  # whether others may take of the same limits
        self._failing = False
        self._exchanged: float | None = None  # when the registry last said what this server may take
        self._careful_until = -math.inf  # it asks for no more than it has before

    def start(self) -> None:
        """Begin to share."""
        self._task.start()

    async def close(self) -> None:
        """Leave to the others what this server had."""
        await self._task.close()
        if self._arrived is not None:
            await self._try(lambda: self._taken.leave(self._server))

    def of(self, tenant_id: str, adapter: str = "") -> Meter:
        """The tenant's meter, of all it takes or of what it takes with one adapter."""
        return self._meters.setdefault(Key(tenant_id, adapter), Meter(adapter=adapter))

    def forget_others(self, tenant_ids: set[str]) -> None:
        """Drop the meters of tenants that are gone; what runs of theirs still settles with its own."""
        self._meters = {key: meter for key, meter in self._meters.items() if key.tenant in tenant_ids}

    def saved(self, tenant_id: str, tokens: int) -> None:
        """The registry has been told of tokens that a tenant has used."""
        meter = self._meters.get(Key(tenant_id))
        if meter is not None:
            meter.saved(tokens)

    async def reserve(
        self, tenant: TenantRecord, adapters: Collection[str], cost: Cost
    ) -> Sequence[Reservation]:
        """Take ``cost`` of a tenant's limits and of those it has with each of the adapters; all or nothing.

        Raises:
            RequestError: it is more than the tenant may ever take.
            RateLimited: it does not fit for now; says when it may.
        """
        wanted = [(Key(tenant.id), tenant.settings.limits)]
        for name in sorted(adapters):
            limits = tenant.limits_with(name)
            if limits != NO_LIMITS:
                wanted.append((Key(tenant.id, name), limits))
        await self._prepare(wanted)
        try:
            return self._reserve(wanted, cost)
        except RateLimited:
            if not self._shared:
                raise
        # Others may have what they don't need: at once, or when they have seen that this server wants some.
        await self._ask([key for key, _ in wanted], cost)
        try:
            return self._reserve(wanted, cost)
        except RateLimited as refusal:
            if refusal.retry_after > 1.0:
                raise
        await asyncio.sleep(1.2 * SHARE_SECONDS + 0.05)
        await self._ask([key for key, _ in wanted], cost)
        return self._reserve(wanted, cost)

    def _reserve(self, wanted: Sequence[tuple[Key, TenantLimits]], cost: Cost) -> Sequence[Reservation]:
        made: list[Reservation] = []
        try:
            for key, limits in wanted:
                made.append(self.of(*key).reserve(limits, cost))
        except BaseException:
            for reservation in made:
                reservation.settle(NOTHING)
            raise
        return made

    async def _prepare(self, wanted: Sequence[tuple[Key, TenantLimits]]) -> None:
        """See that what limits depend on is known, before the first request takes of them."""
        if all(limits == NO_LIMITS for _, limits in wanted):
            return
        if self._arrived is None:
            async with self._asking:
                if self._arrived is None:
                    await self._arrive()
        if self._shared and self._arrived is not None:
            # The others see within a round that they are not alone, and say what they have taken.
            await asyncio.sleep(max(0.0, self._arrived + 2 * SHARE_SECONDS - time.monotonic()))
        new = []
        for key, limits in wanted:
            meter = self.of(*key)
            meter.limits = limits
            unknown = limits.monthly_tokens is not None and meter.used_in_month is None
            if unknown or (self._shared and meter.granted is None):
                new.append(key)
        if new:
            await self._ask(new, NOTHING)

    async def _round(self) -> None:
        if not self._any_tenants():
            return
        self._rounds += 1
        if self._arrived is None or self._rounds % _SAY_EVERY == 0:
            await self._arrive()
        else:
            await self._count(lambda: self._taken.count(time.time()))
        await self._ask([key for key, meter in self._meters.items() if meter.limits != NO_LIMITS], NOTHING)

    async def _arrive(self) -> None:
        await self._count(lambda: self._taken.arrive(self._server, time.time()))
        if self._arrived is None and not self._failing:
            self._arrived = time.monotonic()

    async def _count(self, count: Callable[[], int]) -> None:
        servers = await self._try(count)
        if servers is None:
            return  # whether there are others is not known
        now = time.monotonic()
        if servers > 1:
            self._others_seen = now
        # What a server has taken that is gone counts on for a while.
        self._shared = now - self._others_seen < COUNTS_SECONDS

    async def _ask(self, keys: Sequence[Key], cost: Cost) -> None:
        """Tell the registry what is taken, and take over how far this server may go."""
        try:
            async with asyncio.timeout(ASK_SECONDS), self._asking:
                await self._read_months(keys)
                if self._shared:
                    await self._exchange(keys, cost)
                else:
                    for key in keys:
                        self.of(*key).granted = None
        except TimeoutError:
            logger.warning("the registry does not say in time what tenants may take")

    async def _read_months(self, keys: Sequence[Key]) -> None:
        meters = {
            key.tenant: self.of(*key)
            for key in keys
            if not key.adapter and self.of(*key).limits.monthly_tokens is not None
        }
        # Alone, what is saved adds up to what the registry has.
        asked = {i: m for i, m in meters.items() if self._shared or m.used_in_month is None}
        if not asked:
            return
        month = int(next(iter(asked.values())).month)
        unsaved = {tenant: meter.used_in_month for tenant, meter in asked.items()}
        used = await self._try(lambda: self._taken.used_since(month, asked))
        if used is not None:
            for tenant, meter in asked.items():
                if meter.used_in_month == unsaved[tenant]:  # nothing was saved meanwhile
                    meter.used_in_month = used.get(tenant, 0)

    async def _exchange(self, keys: Sequence[Key], cost: Cost) -> None:
        before = {key: self.of(*key).granted for key in keys}
        asked = {key: self.of(*key).asked(cost) for key in keys}
        now = time.monotonic()
        if self._exchanged is not None and now - self._exchanged > ALIVE_SECONDS / 2:
            # The registry was away: what it has of the others is as old, and not counted though they live.
            self._careful_until = now + 2 * SHARE_SECONDS
        if now < self._careful_until:
            asked = {key: _no_more(each) for key, each in asked.items()}
        granted = await self._try(lambda: self._taken.exchange(self._server, time.time(), asked))
        if granted is not None:
            self._exchanged = now
        for key in keys:
            if granted is not None:
                self.of(*key).granted = granted[key]
            elif before[key] is None:  # each server holds by itself what it has not shared yet
                self.of(*key).granted = None

    async def _try(self, work: Callable[[], T]) -> T | None:
        try:
            result = await asyncio.to_thread(work)
        except AdapterError as error:
            if not self._failing:
                logger.warning("what tenants take is not shared with other servers for now: %s", error)
            self._failing = True
            return None
        self._failing = False
        return result


def _no_more(asked: Mapping[str, Asked]) -> dict[str, Asked]:
    return {what: replace(each, wanted=0, idle=True) for what, each in asked.items()}
