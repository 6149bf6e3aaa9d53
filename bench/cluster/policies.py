"""Ways to spread requests over replicas, behind one interface: three usual ones, and the router's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from bench.cluster.workload import Request
from manylora.server.cluster.affinity import AffinityOptions, AffinityRouter
from manylora.server.cluster.fleet import Report
from manylora.server.cluster.rendezvous import Rendezvous

Prefetches = Sequence[tuple[int, str]]  # a replica, and what it should fetch


class Policy(Protocol):
    """Chooses a replica for each request. What replicas do is told to it late, as in a real cluster."""

    def choose(self, request: Request, now: float) -> tuple[int, Prefetches]:
        """The replica, and what others should fetch."""

    def ended(self, replica: int) -> None:
        """A request of that replica is over."""

    def report(self, replica: int, resident: dict[str, int], ongoing: int) -> None:
        """What a replica holds and does."""


class Uniform:
    """Any replica."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._draw = count, Random(seed)

    def choose(self, request: Request, now: float) -> tuple[int, Prefetches]:  # noqa: ARG002
        return self._draw.randrange(self._count), ()

    def ended(self, replica: int) -> None: ...

    def report(self, replica: int, resident: dict[str, int], ongoing: int) -> None: ...


class LeastLoaded:
    """The replica with the fewest requests that have not ended."""

    def __init__(self, count: int, seed: int) -> None:
        self._open, self._draw = [0] * count, Random(seed)

    def choose(self, request: Request, now: float) -> tuple[int, Prefetches]:  # noqa: ARG002
        least = min(self._open)
        replica = self._draw.choice([index for index, load in enumerate(self._open) if load == least])
        self._open[replica] += 1
        return replica, ()

    def ended(self, replica: int) -> None:
        self._open[replica] -= 1

    def report(self, replica: int, resident: dict[str, int], ongoing: int) -> None: ...


class ConsistentHashing:
    """The one home of the adapter, whatever it has to do."""

    def __init__(self, count: int, seed: int) -> None:
        self._homes = Rendezvous()
        self._homes.set_replicas(f"{seed}-{index}" for index in range(count))

    def choose(self, request: Request, now: float) -> tuple[int, Prefetches]:  # noqa: ARG002
        return int(self._homes.homes(request.adapter, 1)[0].partition("-")[2]), ()

    def ended(self, replica: int) -> None: ...

    def report(self, replica: int, resident: dict[str, int], ongoing: int) -> None: ...


class Affinity:
    """The router that runs on Ray Serve."""

    def __init__(self, count: int, seed: int, capacity: int = 256) -> None:
        self._router = AffinityRouter(AffinityOptions(), seed)
        self._router.set_replicas([f"{seed}-{index}" for index in range(count)])
        self._names = [f"{seed}-{index}" for index in range(count)]
        self._capacity = capacity

    def choose(self, request: Request, now: float) -> tuple[int, Prefetches]:
        members = (request.adapter,)
        self._router.asked(members, request.prompt + request.answer, now)
        choice = self._router.choose(members, now)
        first = min(choice.groups[0], key=self._router.fleet.ongoing)  # as Ray Serve does in a group
        self._router.sent(first, members, now)
        return _index(first), [(_index(replica), adapter) for replica, adapter in choice.prefetch]

    def ended(self, replica: int) -> None:
        self._router.ended(self._names[replica])

    def report(self, replica: int, resident: dict[str, int], ongoing: int) -> None:
        self._router.report(self._names[replica], Report(resident, ongoing, self._capacity))


def _index(name: str) -> int:
    return int(name.partition("-")[2])


POLICIES: dict[str, Callable[[int, int], Policy]] = {
    "random": Uniform,
    "least loaded": LeastLoaded,
    "consistent hashing": ConsistentHashing,
    "affinity": Affinity,
}
