"""How sure a mean or a rate is: 95% confidence intervals, from sums that can be added up.

- A rate, and scores that are all 0 or 1: Wilson's score interval (Wilson 1927), which is right for few
  answers and for rates of 0 and 1 too.
- The mean of anything else: Student's t. With all values equal t would claim certainty, so scores, which
  are bounded, fall back on Wilson: no value between 0 and 1 varies more than 0 and 1 themselves do.
- The difference of two: from the two intervals, by the square-and-add method (Newcombe 1998, method 10;
  Zou and Donner 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
_Z = 1.959963984540054  # the standard normal's quantile at 0.975
_T = (12.7062047, 4.3026527, 3.1824463, 2.7764451, 2.5705818, 2.4469119, 2.3646243, 2.3060041, 2.2621572)

Method = Literal["wilson", "t"]


@dataclass(frozen=True, slots=True)
class Sums:
    """What is kept of some values. Sums of disjoint sets of values add up."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        """Of at least one value."""
        return self.total / self.count

    @property
    def variance(self) -> float:
        """The unbiased estimate, of at least two values. Rounding never makes it negative."""
        return max(0.0, self.squares - self.total * self.mean) / (self.count - 1)


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the true value is with 95% confidence, given the estimate."""

    estimate: float
    low: float
    high: float
    method: Method


def t_quantile(freedom: float) -> float:
    """Student's t at 0.975 for at least one degree of freedom: from a table up to 9, then by expansion.

    The expansion is Abramowitz and Stegun 26.7.5; its error is below 1e-5 there.
    """
    if freedom < 10:
        return _T[int(freedom) - 1]
    z, n = _Z, freedom
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / n**power for power, term in enumerate(terms))


def mean_interval(sums: Sums) -> Interval | None:
    """Student's interval; None for fewer than two values."""
    if sums.count < 2:
        return None
    half = t_quantile(sums.count - 1) * math.sqrt(sums.variance / sums.count)
    return Interval(sums.mean, sums.mean - half, sums.mean + half, "t")


def rate_interval(rate: float, count: float) -> Interval | None:
    """Wilson's interval for a rate seen in ``count`` trials; None without trials."""
    if count <= 0:
        return None
    spread = _Z * _Z / count
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(rate * (1 - rate) * spread + spread * spread / 4) / (1 + spread)
    return Interval(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)), "wilson")


def score_interval(sums: Sums, *, extremes: float) -> Interval | None:
    """The interval for values in [0, 1], of which ``extremes`` are 0 or 1; None without values."""
    if sums.count <= 0:
        return None
    mean = min(1.0, max(0.0, sums.mean))
    if extremes >= sums.count or sums.count < 2 or sums.variance < 1e-12:
        return rate_interval(mean, sums.count)
    found = mean_interval(sums)
    assert found is not None
    return Interval(mean, max(0.0, found.low), min(1.0, found.high), "t")


def difference(one: Interval, other: Interval) -> Interval:
    """``one`` less ``other``, both estimated independently."""
    estimate = one.estimate - other.estimate
    below = math.hypot(one.estimate - one.low, other.high - other.estimate)
    above = math.hypot(one.high - one.estimate, other.estimate - other.low)
    return Interval(estimate, estimate - below, estimate + above, one.method)
