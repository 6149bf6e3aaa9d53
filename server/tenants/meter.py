"""What a tenant has taken of its limits on this server, in all or with one adapter.

A request's tokens are reserved when it is admitted: those of its prompt, and as many as its answer may have.
When it has ended, however it does, what it did not use is given back. A reservation counts for the minute
that begins with it, so what is admitted in any 60 seconds never comes to more than the limit; and for the
month in which it ends. Where several servers share limits, each keeps below the ceilings that it is granted.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from manylora.adapters.registry.tenants.records import NO_LIMITS, TenantLimits
from manylora.adapters.registry.tenants.taken import Asked, Granted
from manylora.server.errors import RateLimited, RequestError
from manylora.server.tenants.limits import MINUTE, NOTHING, Cost, windows

CONCURRENT: Final = "concurrent-requests"
MONTHLY: Final = "monthly-tokens"
_IDLE_SECONDS: Final = 10.0  # without a request, after which a meter wants no share


class Reservation:
    """What one admitted request takes: all that it may use, and once it has ended what it did."""

    def __init__(self, meter: Meter, cost: Cost, until: float) -> None:
        self._meter = meter
        self.cost = cost
        self.until = until  # which it counts for its minute
        self.counts = True  # for the minute
        self.runs = True

    def settle(self, used: Cost) -> None:
        """The request has ended and took ``used``, at most what is reserved. Only the first call counts."""
        if self.runs:
            self._meter.settle(self, used)


@dataclass(frozen=True, slots=True)
class Room:
    """One limit, and what is left of it here."""

    name: str
    limit: int
    of: Callable[[Cost], int]
    taken: int  # by this server; of a month, since the registry was last told
    before: int = 0  # what of the limit is gone for all: used earlier in the month

    @property
    def words(self) -> str:
        """How messages call it."""
        return self.name.removeprefix("monthly-").replace("-", " ")


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of one limit, as headers tell it."""

    name: str
    limit: int
    remaining: int
    reset: int  # seconds after which nothing counts any more


class Meter:
    """What is taken, how many requests run, and how far this server may go. Event loop."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], float] = time.time,
        adapter: str = "",
    ) -> None:
        """``adapter`` is the one that the limits are about, which a refusal names; "": they are about all."""
        self._with = f" with '{adapter}'" if adapter else ""
        self._clock = clock
        self._today = today
        self.running = 0
        self.limits = NO_LIMITS  # that were last held
        self.granted: dict[str, Granted] | None = None  # None: nobody else takes of the limits
        self.used_in_month: int | None = None  # as the registry has it; None: it was not asked
        self._month = 0.0  # unix seconds of the beginning of that one
        self._unsaved = 0  # tokens that the registry does not know of: reserved, or used
        self._taken: deque[Reservation] = deque()  # by time, those that count
        self._total = NOTHING  # of them
        self._last = -math.inf  # when something was last reserved

    def reserve(self, limits: TenantLimits, cost: Cost) -> Reservation:
        """Take ``cost`` of the limits, all of it or nothing.

        Raises:
            RequestError: it is more than the tenant may ever take.
            RateLimited: it does not fit for now; says when it may.
        """
        now = self._clock()
        self._expire(now)
        self.limits, self._last = limits, now
        rooms = tuple(self._rooms(limits))
        for room in rooms:
            if room.of(cost) > room.limit:
                raise RequestError(
                    f"This request may take {room.of(cost)} {room.words}, with all of the answer that it "
                    f"allows; your limit{self._with} is {room.limit} {_per(room)}",
                    "max_tokens",
                    "rate_limit_exceeded",
                )
        for room in rooms:
            if room.taken + room.of(cost) > self._ceiling(room):
                raise self._refusal(room, cost, now)
        reservation = Reservation(self, cost, now + MINUTE)
        self._taken.append(reservation)
        self._add(cost, NOTHING)
        self._unsaved += cost.tokens
        self.running += 1
        return reservation

    def settle(self, reservation: Reservation, used: Cost) -> None:
        """End a reservation that runs, and give back what it did not use."""
        reservation.runs = False
        self.running -= 1
        self._unsaved += used.tokens - reservation.cost.tokens
        if reservation.counts:
            self._add(used, reservation.cost)
        reservation.cost = used

    def saved(self, tokens: int) -> None:
        """The registry has been told of so many tokens that requests have used."""
        self._unsaved -= tokens
        if self.used_in_month is not None:
            self.used_in_month += tokens

    def asked(self, wanted: Cost = NOTHING) -> dict[str, Asked]:
        """What is taken, to be told the registry. Until it has answered no more is taken than that allows."""
        now = self._clock()
        self._expire(now)
        idle = not self.running and now - self._last > _IDLE_SECONDS
        found: dict[str, Asked] = {}
        for room in self._rooms(self.limits):
            limit = room.limit - room.before
            before = None if self.granted is None else self.granted.get(room.name)
            floor = room.taken
            if before is not None and not idle:
                share = max(0, limit - room.taken - before.others) // 2
                floor = max(room.taken, min(before.ceiling, room.taken + share))
            held = room.name in {CONCURRENT, MONTHLY}  # of a month that is what no usage counts yet
            found[room.name] = Asked(limit, room.taken, floor, room.of(wanted), idle, held)
        self.granted = {what: Granted(each.floor, self._others(what)) for what, each in found.items()}
        return found

    def left(self, limits: TenantLimits) -> Iterator[Left]:
        """What is left of each limit, but for how many requests may run at a time."""
        now = self._clock()
        self._expire(now)
        minute = math.ceil(self._taken[-1].until - now) if self._taken else 0
        for room in self._rooms(limits):
            if room.name != CONCURRENT:
                reset = math.ceil(self._rest_of_month()) if room.name == MONTHLY else minute
                gone = room.before + room.taken + self._others(room.name)
                yield Left(room.name, room.limit, max(0, room.limit - gone), reset)

    @property
    def month(self) -> float:
        """When the present month began, in unix seconds. A new one begins with nothing used."""
        now = datetime.fromtimestamp(self._today(), UTC)
        began = datetime(now.year, now.month, 1, tzinfo=UTC).timestamp()
        if began != self._month:
            self._month = began
            self.used_in_month = None if self.used_in_month is None else 0
        return began

    def _rest_of_month(self) -> float:
        began = datetime.fromtimestamp(self.month, UTC)
        after = began.replace(year=began.year + began.month // 12, month=began.month % 12 + 1)
        return after.timestamp() - self._today()

    def _rooms(self, limits: TenantLimits) -> Iterator[Room]:
        if limits.max_concurrent_requests is not None:
            yield Room(CONCURRENT, limits.max_concurrent_requests, lambda cost: cost.requests, self.running)
        for window in windows(limits):
            yield Room(window.name, window.limit, window.of, window.of(self._total))
        if limits.monthly_tokens is not None:
            _ = self.month  # begins a new one if it is time
            used = self.used_in_month or 0
            yield Room(MONTHLY, limits.monthly_tokens, lambda cost: cost.tokens, self._unsaved, used)

    def _ceiling(self, room: Room) -> int:
        """How far this server may go, less what is gone for all."""
        limit = room.limit - room.before
        if self.granted is None:
            return limit
        granted = self.granted.get(room.name)
        return 0 if granted is None else min(limit, granted.ceiling)

    def _others(self, what: str) -> int:
        granted = None if self.granted is None else self.granted.get(what)
        return 0 if granted is None else granted.others

    def _refusal(self, room: Room, cost: Cost, now: float) -> RateLimited:
        taken = room.before + room.taken + self._others(room.name)
        if room.name == CONCURRENT:
            text = f"{taken} of your requests{self._with} run, and no more than {room.limit} may"
            return RateLimited(text, 1.0)
        text = (
            f"This request may take {room.of(cost)} {room.words}; of {room.limit} {_per(room)}{self._with} "
            f"{taken} are taken"
        )
        excess = taken + room.of(cost) - room.limit
        if room.name == MONTHLY:
            return RateLimited(text, self._rest_of_month(), "insufficient_quota")
        return RateLimited(text, self._seconds_until(room, excess, now) if excess > 0 else 1.0)

    def _add(self, more: Cost, less: Cost) -> None:
        total = self._total
        self._total = Cost(
            total.prompt + more.prompt - less.prompt,
            total.completion + more.completion - less.completion,
            total.requests + more.requests - less.requests,
        )

    def _expire(self, now: float) -> None:
        while self._taken and self._taken[0].until <= now:
            gone = self._taken.popleft()
            gone.counts = False
            self._add(NOTHING, gone.cost)

    def _seconds_until(self, room: Room, excess: int, now: float) -> float:
        """After how many seconds so much no longer counts, if nothing is given back before."""
        for reservation in self._taken:
            excess -= room.of(reservation.cost)
            if excess <= 0:
                return reservation.until - now
        return MINUTE


def _per(room: Room) -> str:
    return "a month" if room.name == MONTHLY else "at a time" if room.name == CONCURRENT else "a minute"
