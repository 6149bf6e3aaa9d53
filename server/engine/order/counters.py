"""What each of some has paid, and which of them have work: one level of the virtual token counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

_KEPT: Final = 1024  # counters that are kept before one looks which of them still matter


@dataclass(frozen=True, slots=True)
class LevelStandings:
    """Counters as they were at one moment."""

    paid: Mapping[str, float]
    with_work: frozenset[str]
    least: float  # of those with work

    def of(self, name: str, least: float | None = None) -> float:
        """What ``name`` would have paid if it came now, or when the least was ``least``."""
        return max(self.paid.get(name, 0.0), self.least if least is None else least)


NOBODY: Final = LevelStandings({}, frozenset(), 0.0)


class Counters:
    """One level of counters. The engine's thread."""

    def __init__(self) -> None:
        self._paid: dict[str, float] = {}
        self._work: dict[str, int] = {}  # sequences that run or wait, of those that have any
        self._last = 0.0  # the counter of who had work last, while nobody has
        self._most = _KEPT

    @property
    def contended(self) -> bool:
        """Whether more than one has work."""
        return len(self._work) > 1

    @property
    def idle(self) -> bool:
        """Whether nobody has work."""
        return not self._work

    def has_work(self, name: str) -> bool:
        return name in self._work

    def num_there(self, name: str) -> int:
        """Sequences of ``name`` that run or wait."""
        return self._work.get(name, 0)

    def paid(self, name: str) -> float:
        """What one that has work has paid."""
        return self._paid[name]

    def pay(self, name: str, amount: float) -> None:
        self._paid[name] += amount

    def join(self, name: str) -> None:
        """One more sequence of ``name`` is there; whoever had none is lifted."""
        if name not in self._work:
            self._paid[name] = max(self._paid.get(name, 0.0), self._least())
            self._work[name] = 0
        self._work[name] += 1

    def leave(self, name: str) -> Iterable[str]:
        """One sequence of ``name`` less is there. Returns whose counters were forgotten, which is seldom."""
        self._work[name] -= 1
        if self._work[name]:
            return ()
        del self._work[name]
        self._last = self._paid[name]
        return self._forget() if len(self._paid) > self._most else ()

    def standings(self) -> LevelStandings:
        """How all stand now."""
        return LevelStandings(dict(self._paid), frozenset(self._work), self._least())

    def _least(self) -> float:
        return min((self._paid[each] for each in self._work), default=self._last)

    def _forget(self) -> Iterable[str]:
        """Drop counters that no longer matter: of those without work that would be lifted anyway."""
        least = self._least()
        gone = [name for name, paid in self._paid.items() if name not in self._work and paid <= least]
        for name in gone:
            del self._paid[name]
        self._most = max(_KEPT, 2 * len(self._paid))
        return gone
