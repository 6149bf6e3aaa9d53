"""What a tenant may take in a minute and at a time, held on this server.

A request's tokens are reserved when it is admitted: those of its prompt, and as many as its answer may have.
When it has ended, however it does, what it did not use is given back. A reservation counts for the minute
that begins with it, so what is admitted in any 60 seconds never comes to more than the limit.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from manylora.adapters.registry.tenants.records import TenantLimits
from manylora.server.errors import RateLimited, RequestError

MINUTE: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request takes of its tenant's limits."""

    prompt: int  # tokens
    completion: int  # tokens
    requests: int = 1

    @property
    def tokens(self) -> int:
        """Of prompt and answer."""
        return self.prompt + self.completion


NOTHING: Final = Cost(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Window:
    """One limit of a minute: how headers call it, and what a cost takes of it."""

    name: str
    limit: int
    of: Callable[[Cost], int]

    @property
    def words(self) -> str:
        """How messages call it."""
        return self.name.replace("-", " ")


def windows(limits: TenantLimits) -> Iterator[Window]:
    """The limits of a minute that are set."""
    if limits.requests_per_minute is not None:
        yield Window("requests", limits.requests_per_minute, lambda cost: cost.requests)
    if limits.tokens_per_minute is not None:
        yield Window("tokens", limits.tokens_per_minute, lambda cost: cost.tokens)
    if limits.prompt_tokens_per_minute is not None:
        yield Window("prompt-tokens", limits.prompt_tokens_per_minute, lambda cost: cost.prompt)
    if limits.completion_tokens_per_minute is not None:
        yield Window("completion-tokens", limits.completion_tokens_per_minute, lambda cost: cost.completion)


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


class Meter:
    """What one tenant has taken in the last minute, and how many of its requests run. Event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.running = 0
        self._taken: deque[Reservation] = deque()  # by time, those that count
        self._total = NOTHING  # of them

    def reserve(self, limits: TenantLimits, cost: Cost) -> Reservation:
        """Take ``cost`` of the limits, all of it or nothing.

        Raises:
            RequestError: it is more than the tenant may ever take in a minute.
            RateLimited: it does not fit for now; says when it may.
        """
        now = self._clock()
        self._expire(now)
        for window in windows(limits):
            if window.of(cost) > window.limit:
                raise RequestError(
                    f"This request may take {window.of(cost)} {window.words}, with all of the answer that it "
                    f"allows; your limit is {window.limit} a minute",
                    "max_tokens",
                    "rate_limit_exceeded",
                )
        most = limits.max_concurrent_requests
        if most is not None and self.running >= most:
            raise RateLimited(f"{self.running} of your requests run, and no more than {most} may", 1.0)
        for window in windows(limits):
            used = window.of(self._total)
            excess = used + window.of(cost) - window.limit
            if excess > 0:
                raise RateLimited(
                    f"This request may take {window.of(cost)} {window.words}; of {window.limit} a minute "
                    f"{used} are taken",
                    self._seconds_until(window, excess, now),
                )
        reservation = Reservation(self, cost, now + MINUTE)
        self._taken.append(reservation)
        self._add(cost, NOTHING)
        self.running += 1
        return reservation

    def settle(self, reservation: Reservation, used: Cost) -> None:
        """End a reservation that runs, and give back what it did not use."""
        reservation.runs = False
        self.running -= 1
        if reservation.counts:
            self._add(used, reservation.cost)
        reservation.cost = used

    def headers(self, limits: TenantLimits) -> Mapping[str, str]:
        """What is left, as OpenAI's headers tell it: ``x-ratelimit-remaining-tokens`` and so on."""
        now = self._clock()
        self._expire(now)
        reset = math.ceil(self._taken[-1].until - now) if self._taken else 0
        told: dict[str, str] = {}
        for window in windows(limits):
            left = max(0, window.limit - window.of(self._total))
            told[f"x-ratelimit-limit-{window.name}"] = str(window.limit)
            told[f"x-ratelimit-remaining-{window.name}"] = str(left)
            told[f"x-ratelimit-reset-{window.name}"] = f"{reset}s"
        return told

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

    def _seconds_until(self, window: Window, excess: int, now: float) -> float:
        """After how many seconds so much no longer counts, if nothing is given back before."""
        for reservation in self._taken:
            excess -= window.of(reservation.cost)
            if excess <= 0:
                return reservation.until - now
        return MINUTE


class Meters:
    """The meters of tenants by id, each made when it is first needed."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}

    def of(self, tenant_id: str) -> Meter:
        """The tenant's meter."""
        return self._meters.setdefault(tenant_id, Meter())

    def forget_others(self, tenant_ids: set[str]) -> None:
        """Drop the meters of tenants that are gone; what runs of theirs still settles with its own."""
        self._meters = {key: meter for key, meter in self._meters.items() if key in tenant_ids}
