"""Intervals against their definitions, tables and published examples; sums against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.experiments.statistics import (
    Interval,
    Sums,
    difference,
    mean_interval,
    rate_interval,
    score_interval,
    t_quantile,
)

Z = 1.959963984540054


def sums(values: list[float]) -> Sums:
    return Sums(len(values), math.fsum(values), math.fsum(value * value for value in values))


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [
        (1, 12.706205),
        (2, 4.302653),
        (3, 3.182446),
        (9, 2.262157),
        (10, 2.228139),
        (11, 2.200985),
        (12, 2.178813),
        (15, 2.131450),
        (20, 2.085963),
        (30, 2.042272),
        (60, 2.000298),
        (120, 1.979930),
        (1000, 1.962339),
        (10**9, 1.959964),
    ],
)
def test_student_t_against_the_tables(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=1e-5)


def test_student_t_falls_with_the_degrees_of_freedom() -> None:
    quantiles = [t_quantile(freedom) for freedom in range(1, 200)]
    assert quantiles == sorted(quantiles, reverse=True)


def test_a_mean_by_hand() -> None:
    found = mean_interval(sums([1.0, 2.0, 3.0, 4.0]))
    assert found is not None
    half = 3.1824463 * math.sqrt(5 / 3) / 2  # variance 5/3, n = 4
    assert (found.estimate, found.method) == (2.5, "t")
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half))
    assert mean_interval(sums([1.0])) is None
    assert mean_interval(sums([])) is None


@given(st.lists(st.floats(1e-3, 1e5), min_size=2, max_size=60))
def test_a_mean_against_numpy(values: list[float]) -> None:
    found = mean_interval(sums(values))
    assert found is not None
    half = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    assert found.estimate == pytest.approx(float(np.mean(values)))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-6, abs=1e-5 * max(values))


@given(st.integers(1, 100_000), st.data())
def test_a_rate_solves_the_equation_that_defines_wilsons_interval(count: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, count))
    found = rate_interval(hits / count, count)
    assert found is not None
    assert 0 <= found.low <= hits / count <= found.high <= 1
    for end, limit in ((found.low, 0), (found.high, count)):
        if hits != limit:
            expected = Z * math.sqrt(end * (1 - end) / count)
            assert abs(hits / count - end) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        else:
            assert end == pytest.approx(limit / count, abs=1e-12)


def test_a_rate_at_the_edges() -> None:
    assert rate_interval(0.0, 0) is None
    for count in (1, 2, 5):
        none, every = rate_interval(0.0, count), rate_interval(1.0, count)
        assert none is not None
        assert every is not None
        assert none.low == 0.0
        assert none.high > 0.4  # five answers say little
        assert every.low == pytest.approx(1 - none.high)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_scores_stay_where_scores_are(values: list[float]) -> None:
    found = score_interval(sums(values), extremes=sum(value in {0, 1} for value in values))
    assert found is not None
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    assert found.high > found.low, "no number of answers makes certain"
    assert found.estimate == pytest.approx(float(np.mean(values)))


def test_thumbs_are_a_rate_and_stars_a_mean() -> None:
    thumbs = score_interval(sums([1.0, 1.0, 0.0]), extremes=3)
    assert thumbs == rate_interval(2 / 3, 3)
    stars = score_interval(sums([0.5, 0.75, 0.5, 0.75]), extremes=0)
    assert stars is not None
    assert stars.method == "t"
    same = score_interval(sums([0.75] * 5), extremes=0)
    assert same == rate_interval(0.75, 5)


def test_a_difference_against_the_published_example() -> None:
    """Newcombe 1998, table II, contrast (a), method 10: 56/70 less 48/80."""
    one, other = rate_interval(56 / 70, 70), rate_interval(48 / 80, 80)
    assert one is not None
    assert other is not None
    found = difference(one, other)
    assert found.estimate == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_a_difference_turned_round_is_its_negative() -> None:
    one, other = Interval(3.0, 2.0, 5.0, "t"), Interval(1.0, 0.5, 2.0, "t")
    there, back = difference(one, other), difference(other, one)
    assert (there.estimate, there.low, there.high) == (-back.estimate, -back.high, -back.low)


def test_intervals_hold_what_they_promise() -> None:
    """95% of them contain the truth: thumbs with a rate of 0.3, and a skewed duration, 40 of each."""
    random = np.random.default_rng(1)
    thumbs, times = 0, 0
    for _ in range(2000):
        drawn = (random.random(40) < 0.3).astype(float).tolist()
        rate = score_interval(sums(drawn), extremes=40)
        mean = mean_interval(sums(random.gamma(4.0, 0.25, 40).tolist()))  # of mean 1
        assert rate is not None
        assert mean is not None
        thumbs += rate.low <= 0.3 <= rate.high
        times += mean.low <= 1.0 <= mean.high
    assert 0.93 < thumbs / 2000 < 0.97
    assert 0.92 < times / 2000 < 0.97
