"""Meters: whatever is asked for and however it ends, no 60 seconds take more than the limits say."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.adapters.registry.tenants.records import NO_LIMITS, TenantLimits
from manylora.server.errors import RateLimited, RequestError
from manylora.server.tenants.limit_headers import headers_of
from manylora.server.tenants.limits import MINUTE, Cost, windows
from manylora.server.tenants.meter import Meter, Reservation


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Admitted:
    at: float
    cost: Cost  # what counts for it now
    reservation: Reservation
    runs: bool = True


limit = st.none() | st.integers(1, 60)
all_limits = st.builds(TenantLimits, st.none() | st.integers(1, 4), limit, limit, limit, limit)
request = st.tuples(st.just("ask"), st.integers(0, 30), st.integers(0, 30))
end = st.tuples(st.just("end"), st.integers(0, 10), st.floats(0, 1))
wait = st.tuples(st.just("wait"), st.floats(0, 40), st.just(0))


@given(all_limits, st.lists(st.one_of(request, end, wait), max_size=40))
def test_what_is_admitted_is_what_fits(limits: TenantLimits, steps: list[tuple[str, float, float]]) -> None:
    """A slow count over everything that was ever admitted says the same as the meter, at each step."""
    clock, admitted = Clock(), list[Admitted]()
    meter = Meter(clock)
    for kind, first, second in steps:
        if kind == "wait":
            clock.now += first
        elif kind == "end":
            running = [each for each in admitted if each.runs]
            if running:
                each = running[int(first) % len(running)]
                used = Cost(each.cost.prompt, int(each.cost.completion * second))
                each.reservation.settle(used)
                each.reservation.settle(Cost(0, 0, 0))  # a second time changes nothing
                each.runs, each.cost = False, used
        else:
            cost = Cost(int(first), int(second))
            try:
                reservation = meter.reserve(limits, cost)
            except RateLimited:
                assert not fits(limits, admitted, cost, clock.now)
                assert all(w.of(cost) <= w.limit for w in windows(limits))
            except RequestError:
                assert any(w.of(cost) > w.limit for w in windows(limits))
            else:
                assert fits(limits, admitted, cost, clock.now)
                admitted.append(Admitted(clock.now, cost, reservation))
        assert meter.running == sum(each.runs for each in admitted)
        left = headers_of(meter.left(limits))
        for window in windows(limits):
            taken = sum(window.of(each.cost) for each in counting(admitted, clock.now))
            assert taken <= window.limit
            assert left[f"x-ratelimit-remaining-{window.name}"] == str(window.limit - taken)


def counting(admitted: list[Admitted], now: float) -> list[Admitted]:
    return [each for each in admitted if now < each.at + MINUTE]


def fits(limits: TenantLimits, admitted: list[Admitted], cost: Cost, now: float) -> bool:
    most = limits.max_concurrent_requests
    if most is not None and sum(each.runs for each in admitted) >= most:
        return False
    recent = counting(admitted, now)
    return all(sum(w.of(e.cost) for e in recent) + w.of(cost) <= w.limit for w in windows(limits))


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40)), min_size=1, max_size=12), st.integers(1, 40)
)
def test_after_the_time_that_is_told_it_fits(earlier: list[tuple[float, int]], wanted: int) -> None:
    clock = Clock()
    meter, limits = Meter(clock), TenantLimits(tokens_per_minute=40)
    for pause, tokens in earlier:
        clock.now += pause
        with suppress(RateLimited):
            meter.reserve(limits, Cost(tokens, 0))
    try:
        meter.reserve(limits, Cost(wanted, 0))
    except RateLimited as error:
        seconds = error.retry_after
        clock.now += seconds * 0.999
        with pytest.raises(RateLimited):
            meter.reserve(limits, Cost(wanted, 0))
        clock.now += seconds * 0.001 + 1e-6
        meter.reserve(limits, Cost(wanted, 0))


def test_without_limits_only_what_runs_is_counted() -> None:
    meter = Meter(Clock())
    reservations = [meter.reserve(NO_LIMITS, Cost(10**9, 10**9)) for _ in range(100)]
    assert meter.running == 100
    assert headers_of(meter.left(NO_LIMITS)) == {}
    for reservation in reservations:
        reservation.settle(Cost(1, 1))
    assert meter.running == 0


def test_limits_that_get_smaller_hold_at_once() -> None:
    meter = Meter(Clock())
    meter.reserve(TenantLimits(tokens_per_minute=100), Cost(50, 40))
    smaller = TenantLimits(tokens_per_minute=20)
    assert headers_of(meter.left(smaller))["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(RateLimited):
        meter.reserve(smaller, Cost(1, 1))


def test_what_ends_after_its_minute_gives_nothing_back_to_another() -> None:
    clock = Clock()
    meter, limits = Meter(clock), TenantLimits(tokens_per_minute=100)
    first = meter.reserve(limits, Cost(10, 90))
    clock.now = 61
    meter.reserve(limits, Cost(0, 100))
    first.settle(Cost(10, 5))
    with pytest.raises(RateLimited):
        meter.reserve(limits, Cost(0, 1))
