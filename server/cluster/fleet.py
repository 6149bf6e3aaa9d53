"""What a router knows of the replicas: what they hold, what they do, and what they will hold in a moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica says of itself now and then."""

    resident: Mapping[str, int]  # what answers there at once -> its rank, 0 where that isn't known
    ongoing: int = 0  # requests that it runs and that wait in it
    capacity: int = 1  # sequences that it computes together


@dataclass(slots=True)
class _Replica:
    report: Report
    open: int = 0  # requests of this router that have not ended
    sent: int = 0  # those that this router sent since the report, less those that ended since
    assumed: dict[str, float] = field(
        default_factory=dict
    )  # what it is loading -> until when that is believed


class Fleet:
    """The replicas as one router sees them. Times are of any one clock that never goes back."""

    def __init__(self, assume_seconds: float) -> None:
        """What was sent to a replica is taken to be there for ``assume_seconds``, until a report knows it."""
        self._assume_seconds = assume_seconds
        self._replicas: dict[str, _Replica] = {}
        self._holders: defaultdict[str, set[str]] = defaultdict(set)
        self._ongoing = 0
        self._capacity = 0

    def __contains__(self, replica: str) -> bool:
        return replica in self._replicas

    def __len__(self) -> int:
        return len(self._replicas)

    @property
    def ids(self) -> tuple[str, ...]:
        """All replicas."""
        return tuple(self._replicas)

    def set_replicas(self, replicas: Iterable[str]) -> None:
        """There are these now, and no others; of new ones nothing is known."""
        wanted = set(replicas)
        for gone in self._replicas.keys() - wanted:
            known = self._replicas.pop(gone)
            self._ongoing -= _ongoing(known)
            self._capacity -= known.report.capacity
            for name in known.report.resident.keys() | known.assumed.keys():
                self._drop(name, gone)
        for new in wanted - self._replicas.keys():
            self._replicas[new] = _Replica(Report({}))
            self._capacity += 1

    def report(self, replica: str, report: Report) -> None:
        """A replica says what it holds and does now."""
        known = self._replicas[replica]
        self._capacity += report.capacity - known.report.capacity
        for name in known.report.resident.keys() - report.resident.keys():
            self._drop(name, replica)
        for name in report.resident.keys() - known.report.resident.keys():
            self._holders[name].add(replica)
        before = self.ongoing(replica)
        known.report, known.sent = report, 0
        self._ongoing += self.ongoing(replica) - before
        for name in [name for name in known.assumed if name in report.resident]:
            del known.assumed[name]
        for name in known.assumed:
            self._holders[name].add(replica)

    def _drop(self, name: str, replica: str) -> None:
        holders = self._holders.get(name)
        if holders is not None:
            holders.discard(replica)
            if not holders:
                del self._holders[name]

    def sent(self, replica: str, members: Sequence[str], now: float) -> None:
        """A request for ``members`` was sent to a replica, which loads what it lacks of them."""
        known = self._replicas.get(replica)
        if known is None:
            return
        self._count(known, 1)
        for name in members:
            if name not in known.report.resident:
                known.assumed[name] = now + self._assume_seconds
                self._holders[name].add(replica)

    def ended(self, replica: str) -> None:
        """A request that was sent to a replica has its answer, or none."""
        known = self._replicas.get(replica)
        if known is not None and known.open > 0:  # not one that was sent before it went and came again
            self._count(known, -1)

    def _count(self, known: _Replica, change: int) -> None:
        before = _ongoing(known)
        known.open += change
        known.sent += change
        self._ongoing += _ongoing(known) - before

    def holders(self, name: str, now: float) -> frozenset[str]:
        """The replicas that hold ``name``, or are loading it."""
        found = self._holders.get(name)
        if not found:
            return _NOBODY
        late = [replica for replica in found if self._is_over(replica, name, now)]
        for replica in late:
            del self._replicas[replica].assumed[name]
            self._drop(name, replica)
        return frozenset(self._holders.get(name, _NOBODY))

    def _is_over(self, replica: str, name: str, now: float) -> bool:
        known = self._replicas[replica]
        until = known.assumed.get(name)
        return until is not None and until < now and name not in known.report.resident

    def rank(self, name: str) -> int:
        """The rank of ``name``, as far as a replica has said it; 0 if none has."""
        for replica in self._holders.get(name, _NOBODY):
            if rank := self._replicas[replica].report.resident.get(name, 0):
                return rank
        return 0

    def ongoing(self, replica: str) -> int:
        """Requests that a replica runs, or that wait in it."""
        return _ongoing(self._replicas[replica])

    def capacity(self, replica: str) -> int:
        """Sequences that a replica computes together."""
        return self._replicas[replica].report.capacity

    @property
    def mean_ongoing(self) -> float:
        """Requests a replica, over all of them."""
        return self._ongoing / max(1, len(self._replicas))

    @property
    def busy(self) -> float:
        """How many replicas the ongoing requests would fill."""
        return self._ongoing * len(self._replicas) / max(1, self._capacity)


def _ongoing(known: _Replica) -> int:
    """Its own word and what has happened since; of this router's requests at least those that are open."""
    return max(known.open, known.report.ongoing + known.sent)
