"""What is asked of the simulation: figures by size, and how many replicas each policy needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from bench.cluster.adapter_memory import Hardware
from bench.cluster.law import Law
from bench.cluster.policies import POLICIES
from bench.cluster.simulation import Outcome, Simulation
from bench.cluster.workload import Demand, Workload

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs have in common. Times are in seconds."""

    law: Law
    hardware: Hardware
    demand: Demand  # its rate is of one replica
    seconds: float
    warm_up: float
    seed: int = 1

    def run(self, policy: str, replicas: int, rate: float) -> Outcome:
        """One run at ``rate`` requests a second in all."""
        made = POLICIES[policy](replicas, self.seed)
        simulation = Simulation(self.law, self.hardware, made, replicas)
        workload = Workload(replace(self.demand, rate=rate), self.seed)
        return simulation.run(workload, self.seconds, self.warm_up)


def by_size(
    setting: Setting, sizes: Sequence[int], policies: Sequence[str], told: Told
) -> Iterator[dict[str, object]]:
    """The same load a replica on ever more of them."""
    for replicas in sizes:
        for policy in policies:
            found = setting.run(policy, replicas, setting.demand.rate * replicas)
            told(f"{replicas} replicas, {policy}: {found.row()}")
            yield {"replicas": replicas, "policy": policy, **found.row()}


def needed(
    setting: Setting, rate: float, most_wait: float, policies: Sequence[str], told: Told
) -> Iterator[dict[str, object]]:
    """The fewest replicas, to 5%, whose 99th percentile of first tokens is at most ``most_wait`` seconds."""
    for policy in policies:
        low, high = 0, ceil(rate / setting.demand.rate)
        while not _is_enough(setting, policy, high, rate, most_wait):
            low, high = high, 2 * high
            if high > 64 * rate / setting.demand.rate:
                break
        while high - low > max(1, high // 20):
            middle = (low + high) // 2
            if _is_enough(setting, policy, middle, rate, most_wait):
                high = middle
            else:
                low = middle
        told(f"{policy}: {high} replicas for {rate:g} requests a second")
        yield {"policy": policy, "rate": rate, "most_wait": most_wait, "replicas": high}


def _is_enough(setting: Setting, policy: str, replicas: int, rate: float, most_wait: float) -> bool:
    found = setting.run(policy, replicas, rate)
    return not found.unanswered and found.first_token_p99 <= most_wait
