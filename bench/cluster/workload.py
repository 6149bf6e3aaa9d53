"""Requests of a simulation: Zipf's popularity over many adapters, whose order drifts as time goes by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_BLOCK = 4096  # requests drawn at a time


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked."""

    rate: float  # requests a second, at random times
    adapters: int = 100_000
    exponent: float = 1.0  # of Zipf's law
    drift: float = 5.0  # seconds after which some adapters have changed places
    drifting: float = 0.02  # the share of the 1,000 most popular that then do
    prompt: float = 256.0  # tokens, on average; log-normal
    answer: float = 128.0  # tokens, on average; geometric
    ranks: tuple[int, ...] = (8, 16, 32, 64)  # of adapters, by chance
    rank_weights: tuple[float, ...] = (0.3, 0.4, 0.2, 0.1)


@dataclass(slots=True)
class Request:
    """One request. Times are seconds since the beginning; the last ones are filled in by its replica."""

    at: float
    adapter: str
    rank: int
    prompt: int
    answer: int
    hit: bool = False  # its adapter was on the device when it came to the replica
    first_token: float = 0.0


class Workload:
    """Draws requests. The same seed draws the same ones, whoever answers them."""

    def __init__(self, demand: Demand, seed: int) -> None:
        self.demand = demand
        self._draw = np.random.default_rng(seed)
        weights = 1.0 / np.arange(1, demand.adapters + 1) ** demand.exponent
        self._cumulative = np.cumsum(weights) / weights.sum()
        self._places = self._draw.permutation(demand.adapters)  # by popularity
        self._ranks = self._draw.choice(demand.ranks, demand.adapters, p=demand.rank_weights)

    def requests(self, seconds: float) -> Iterator[Request]:
        """Requests in order, for so long."""
        now, next_drift = 0.0, self.demand.drift
        while True:
            gaps = self._draw.exponential(1.0 / self.demand.rate, _BLOCK)
            popular = np.searchsorted(self._cumulative, self._draw.random(_BLOCK))
            spread = 0.8
            prompts = self._draw.lognormal(np.log(self.demand.prompt) - spread**2 / 2, spread, _BLOCK)
            answers = self._draw.geometric(1.0 / self.demand.answer, _BLOCK)
            for gap, place, prompt, answer in zip(gaps, popular, prompts, answers, strict=True):
                now += float(gap)
                if now > seconds:
                    return
                while now > next_drift:
                    self._change_places()
                    next_drift += self.demand.drift
                number = int(self._places[min(int(place), self.demand.adapters - 1)])
                rank = int(self._ranks[number])
                yield Request(now, f"a{number}", rank, max(1, int(prompt)), int(answer))

    def rank_of(self, adapter: str) -> int:
        """The rank of an adapter."""
        return int(self._ranks[int(adapter[1:])])

    def _change_places(self) -> None:
        """Some of the popular ones lose their place to adapters that hardly anybody asked for."""
        top = min(1000, self.demand.adapters)
        count = max(1, round(self.demand.drifting * top))
        risen = self._draw.choice(self.demand.adapters, count, replace=False)
        fallen = self._draw.choice(top, count, replace=False)
        for one, two in zip(risen, fallen, strict=True):
            self._places[[one, two]] = self._places[[two, one]]
