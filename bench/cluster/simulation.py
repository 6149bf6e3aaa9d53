"""The events of a cluster in order of time: requests, steps, loads, and reports of replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from typing import Protocol

import numpy as np

from bench.cluster.adapter_memory import Hardware
from bench.cluster.law import Law
from bench.cluster.policies import Policy
from bench.cluster.replica import Replica
from bench.cluster.shared_machine import SharedMachine
from bench.cluster.workload import Request

REPORT_SECONDS = 0.5  # as on Ray Serve
PATIENCE = 300.0  # seconds after the last request at which what has not ended is left


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out. Times are in seconds; only requests after the warm-up count."""

    requests: int
    hit_rate: float  # of requests whose adapter was on the device when they came
    first_token_p50: float
    first_token_p99: float
    unanswered: int  # within the time there was

    def row(self) -> dict[str, float]:
        """As JSON."""
        return {key: round(value, 5) for key, value in asdict(self).items()}


class Requests(Protocol):
    """Where requests come from."""

    def requests(self, seconds: float) -> Iterable[Request]:
        """In order, those of so long."""

    def rank_of(self, adapter: str) -> int:
        """The rank of an adapter."""


class Simulation:
    """One run of a policy over a workload."""

    def __init__(
        self, law: Law, hardware: Hardware, policy: Policy, replicas: int, *, beside: Law | None = None
    ) -> None:
        """Replicas with a machine each; with ``beside`` on one, and that is the law while others compute."""
        self.now = 0.0
        self._policy = policy
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0
        self._left = 0  # requests that have not ended
        laws, machine = (law, beside or law), SharedMachine()
        self.replicas = [
            Replica(laws, hardware, self._at, self._end_of(index), machine if beside else SharedMachine())
            for index in range(replicas)
        ]

    def run(self, workload: Requests, seconds: float, warm_up: float) -> Outcome:
        """Let requests come for so long, and wait for their answers."""
        came: list[Request] = []
        for index in range(len(self.replicas)):
            self._report(index, index * REPORT_SECONDS / len(self.replicas), seconds)
        for request in workload.requests(seconds):
            self._until(request.at)
            came.append(request)
            self._route(request, workload)
        self._until(seconds + PATIENCE, stop_when_idle=True)
        return outcome([request for request in came if request.at >= warm_up])

    def _route(self, request: Request, workload: Requests) -> None:
        replica, prefetches = self._policy.choose(request, request.at)
        self._left += 1
        for other, adapter in prefetches:
            self.replicas[other].memory.prefetch(adapter, workload.rank_of(adapter), request.at)
        self.replicas[replica].arrive(request, request.at)

    def _at(self, when: float, call: Callable[[float], None]) -> None:
        self._number += 1
        heappush(self._events, (when, self._number, call))

    def _until(self, when: float, *, stop_when_idle: bool = False) -> None:
        while self._events and self._events[0][0] <= when and (self._left or not stop_when_idle):
            self.now, _, call = heappop(self._events)
            call(self.now)

    def _report(self, index: int, when: float, last: float) -> None:
        def report(now: float) -> None:
            replica = self.replicas[index]
            self._policy.report(index, replica.memory.resident(), replica.ongoing)
            if now < last:
                self._at(now + REPORT_SECONDS, report)

        self._at(when, report)

    def _end_of(self, index: int) -> Callable[[Request], None]:
        def ended(_: Request) -> None:
            self._left -= 1
            self._policy.ended(index)

        return ended


def outcome(requests: list[Request]) -> Outcome:
    """The figures of requests."""
    answered = [request for request in requests if request.first_token > 0]
    waits = np.array([request.first_token - request.at for request in answered] or [np.inf])
    return Outcome(
        requests=len(requests),
        hit_rate=float(np.mean([request.hit for request in requests])) if requests else 0.0,
        first_token_p50=float(np.quantile(waits, 0.5)),
        first_token_p99=float(np.quantile(waits, 0.99)),
        unanswered=len(requests) - len(answered),
    )
