"""Which replica should answer: one that holds every member of the mix and has time for it.

The order in which replicas are tried, of those that are not overloaded:

1. *homes* that hold all members. Rendezvous hashing gives every adapter one home, and more of them as it is
   asked for more: as many as its share of all rank × tokens would fill, twice over;
2. other replicas that hold all members. Their copies come from busier times; while homes have time they get
   no requests, so that their pages become the least recently used and go;
3. homes, those with more of the members first, which load what they lack;
4. then any, the least loaded of a few first.

A home that lacks an adapter which others hold is told to fetch it, and gets requests once it has. So an
adapter that becomes popular, and homes that move because a replica came or went, cost no request a wait.

Overloaded is a replica that has more to do than others by half and by a few requests: the bound of
"consistent hashing with bounded loads" (Mirrokni, Thorup and Zadimoghaddam, 2018).

This module knows nothing of what carries the requests: routers and simulations use the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from manylora.server.cluster.demand import Demand
from manylora.server.cluster.fleet import Fleet, Report
from manylora.server.cluster.rendezvous import Rendezvous

_USUAL_RANK = 16  # of adapters whose rank no replica has told yet
_SAMPLE = 4  # replicas among which the least loaded is chosen where any would do
_MOST_PREFETCHES = 2  # that one request causes


@dataclass(frozen=True, slots=True)
class AffinityOptions:
    """How replicas are chosen. Times are in seconds."""

    headroom: float = 2.0  # homes of an adapter, over what its requests would fill
    overload: float = 1.5  # times the mean of ongoing requests
    slack: int = 8  # requests above the mean that are no overload anyway
    half_life: float = 30.0  # after which a request counts half for its adapter
    assume_seconds: float = 5.0  # for which an adapter that was asked of a replica is taken to be there
    prefetch_seconds: float = 5.0  # after which a home is told again to fetch an adapter

    def __post_init__(self) -> None:
        times = (self.half_life, self.assume_seconds, self.prefetch_seconds)
        if not (self.headroom > 0 and self.overload >= 1 and self.slack >= 1 and min(times) > 0):
            raise ValueError(f"{self}: everything is above 0, 'overload' and 'slack' are 1 at least")


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request should go, and what should be fetched for those to come."""

    groups: tuple[tuple[str, ...], ...]  # of replicas, the best group first; none is empty
    prefetch: tuple[tuple[str, str], ...] = ()  # a replica, and the adapter that it should fetch

    @property
    def order(self) -> tuple[str, ...]:
        """Every replica once, in the order of the groups."""
        return tuple(dict.fromkeys(replica for group in self.groups for replica in group))


class AffinityRouter:
    """Chooses replicas by what they hold and do. Not for several threads at once."""

    def __init__(self, options: AffinityOptions = AffinityOptions(), seed: int | None = None) -> None:
        """``seed`` of the draws where any replica would do; None: another one each time."""
        self.options = options
        self.fleet = Fleet(options.assume_seconds)
        self._homes = Rendezvous()
        self._demand = Demand(options.half_life)
        self._asked: dict[tuple[str, str], float] = {}  # when a replica was told to fetch an adapter
        self._draw = Random(seed)

    def set_replicas(self, replicas: Sequence[str]) -> None:
        """There are these replicas now, and no others."""
        self.fleet.set_replicas(replicas)
        self._homes.set_replicas(replicas)
        self._asked = {pair: at for pair, at in self._asked.items() if pair[0] in self.fleet}

    def report(self, replica: str, report: Report) -> None:
        """A replica tells what it holds and does."""
        self.fleet.report(replica, report)

    def sent(self, replica: str, members: Sequence[str], now: float) -> None:
        """A request for ``members`` went to ``replica``."""
        self.fleet.sent(replica, members, now)

    def ended(self, replica: str) -> None:
        """A request that went to ``replica`` is over."""
        self.fleet.ended(replica)

    def asked(self, members: Sequence[str], tokens: float, now: float) -> None:
        """Count a request of about so many tokens for the adapters of a mix; once for each request."""
        for name in members:
            self._demand.add(name, tokens * (self.fleet.rank(name) or _USUAL_RANK), now)

    def copies(self, name: str, now: float) -> int:
        """How many homes an adapter has at the moment."""
        filled = self._demand.share(name, now) * self.fleet.busy
        return max(1, min(len(self.fleet), math.ceil(self.options.headroom * filled)))

    def homes(self, name: str, now: float) -> tuple[str, ...]:
        """The homes of an adapter at the moment."""
        return self._homes.homes(name, self.copies(name, now))

    def choose(self, members: Sequence[str], now: float) -> Choice:
        """Where a request for these adapters should go; no members: the base model. Changes no load."""
        anyone = self._anyone()
        if not members:
            return Choice(anyone)
        limit = self._limit()
        homes = {name: self.homes(name, now) for name in members}
        holding = {name: self.fleet.holders(name, now) for name in members}
        full = frozenset.intersection(*holding.values())
        at_home = list(dict.fromkeys(home for name in members for home in homes[name]))
        groups = [
            [home for home in at_home if home in full],
            sorted(full.difference(at_home)),
            *self._by_members_held(at_home, full, holding),
        ]
        free = [tuple(r for r in group if self.fleet.ongoing(r) <= limit) for group in groups]
        chosen = [group for group in free if group]
        if not chosen:  # the next in the order of hashing, before just any
            chosen = self._next_homes(members, len(at_home), limit)
        return Choice((*chosen, *anyone), self._prefetches(homes, holding, now))

    def _by_members_held(
        self, homes: Sequence[str], full: frozenset[str], holding: dict[str, frozenset[str]]
    ) -> list[list[str]]:
        """Homes that lack something, those that lack less in an earlier group."""
        groups: dict[int, list[str]] = {}
        for home in homes:
            if home not in full:
                held = sum(home in holders for holders in holding.values())
                groups.setdefault(held, []).append(home)
        return [groups[held] for held in sorted(groups, reverse=True)]

    def _next_homes(self, members: Sequence[str], tried: int, limit: float) -> list[tuple[str, ...]]:
        further = self._homes.homes(members[0], tried + _SAMPLE)
        free = [replica for replica in further if self.fleet.ongoing(replica) <= limit]
        return [(free[0],)] if free else []

    def _prefetches(
        self, homes: dict[str, tuple[str, ...]], holding: dict[str, frozenset[str]], now: float
    ) -> tuple[tuple[str, str], ...]:
        """What homes should fetch, since others answer for them meanwhile."""
        lacking = [
            (home, name)
            for name, own in homes.items()
            if holding[name]
            for home in own
            if home not in holding[name]
            and now - self._asked.get((home, name), -math.inf) >= self.options.prefetch_seconds
        ][:_MOST_PREFETCHES]
        if len(self._asked) > 10_000:
            self._asked = {
                pair: at for pair, at in self._asked.items() if now - at < self.options.prefetch_seconds
            }
        self._asked.update(dict.fromkeys(lacking, now))
        return tuple(lacking)

    def _limit(self) -> float:
        """Ongoing requests of a replica above which it is overloaded. One of the fleet never is."""
        mean = self.fleet.mean_ongoing
        return max(mean * self.options.overload, mean + self.options.slack)

    def _anyone(self) -> tuple[tuple[str, ...], ...]:
        """All replicas; before them, where they are many, the least loaded of a few."""
        everyone = self.fleet.ids
        if len(everyone) <= _SAMPLE:
            return (everyone,) if everyone else ()
        few = self._draw.sample(everyone, _SAMPLE)
        return (min(few, key=self.fleet.ongoing),), everyone
