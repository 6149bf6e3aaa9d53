"""Sets of revisions that wait for their turn, for a read, or for room on the device.

Without tenants the order is that of arrival. Otherwise it is the engine's: first is who has got the least
service at that moment, by the counters of :mod:`manylora.server.engine.order.fairness`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice

from manylora.server.engine.clients import EVERYBODY
from manylora.server.engine.order.turns import NO_TENANT, Asker, Floor, Turn, Turns
from manylora.server.model.pages.pool import PackedAdapter
from manylora.server.residency.revision import Revision


@dataclass(eq=False)
class Waiter:
    """A set that is granted as a whole."""

    members: tuple[Revision, ...]
    granted: asyncio.Future[None]
    asker: Asker = NO_TENANT
    floor: Floor | None = None  # of its turns; the queue's own
    since: float | None = None  # when it was first found that there is no room
    only_to_load: bool = False  # wants its members to be resident, not to hold them there
    loads: dict[str, asyncio.Future[PackedAdapter]] = field(default_factory=dict)  # of missing members


class WaitingSets:
    """The queue. Lives on the event loop."""

    def __init__(self, turns: Turns | None = None) -> None:
        """``turns`` say whose turn it is; None: the order is that of arrival, whoever asks."""
        self._turns = turns
        self._waiters: dict[Waiter, None] = {}  # by arrival
        self._tenants = False  # whether a tenant has ever asked

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def contended(self) -> bool:
        """Whether the order may change while nobody comes or goes."""
        return self._ordered and len(self._waiters) > 1

    def append(self, waiter: Waiter) -> None:
        self._meet(waiter.asker)
        self._waiters[waiter] = None
        self._watch()

    def remove(self, waiter: Waiter) -> None:
        """Take one out that is granted or has gone; nothing if it is out."""
        self._waiters.pop(waiter, None)
        self._watch()

    def first(self) -> Waiter | None:
        """Whose turn it is now; None if nobody waits."""
        if not self._ordered:
            return next(iter(self._waiters), None)
        return min(self._waiters, key=self._turn, default=None)

    def ahead(self, count: int) -> Sequence[Waiter]:
        """The first ``count`` of them."""
        if not self._ordered:
            return list(islice(self._waiters, count))
        return nsmallest(count, self._waiters, key=self._turn)

    def behind(self, count: int) -> Sequence[Waiter]:
        """All but the first ``count``, if they may have been among those before."""
        if not self._ordered:
            return ()
        ahead = set(self.ahead(count))
        return [waiter for waiter in self._waiters if waiter not in ahead]

    def goes_before(self, waiter: Waiter, asker: Asker) -> bool:
        """Whether one that waits goes before somebody who comes now."""
        self._meet(asker)
        if not self._ordered:
            return True
        assert self._turns is not None
        return self._turn(waiter) <= self._turns.of(asker)

    @property
    def _ordered(self) -> bool:
        return self._tenants and self._turns is not None

    def _turn(self, waiter: Waiter) -> Turn:
        assert self._turns is not None
        if waiter.floor is None:
            waiter.floor = self._turns.floor(waiter.asker)
        return self._turns.of(waiter.asker, waiter.floor)

    def _meet(self, asker: Asker) -> None:
        if not self._tenants and asker.client is not EVERYBODY:
            self._tenants = True
            self._watch()

    def _watch(self) -> None:
        """Have the engine tell how those who wait stand."""
        if self._turns is not None and self._tenants:
            self._turns.watched = frozenset(waiter.asker.client.name for waiter in self._waiters)
