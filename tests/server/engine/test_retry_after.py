"""When a refused client is told to come back: as often as sequences end while there is work."""

from __future__ import annotations

import pytest

from manylora.server.engine import async_engine
from manylora.server.engine.retry_after import RetryAfter
from manylora.server.errors import QueueFull
from tests.support.running_engine import RunningEngine, collect


def after(*gaps: float) -> RetryAfter:
    """A rate that has seen sequences end with these gaps between them."""
    rate, now = RetryAfter(), 1000.0
    rate.resumed(now)
    for gap in gaps:
        now += gap
        rate.finished(now)
    return rate


@pytest.mark.parametrize(
    ("gaps", "seconds"), [((), 1.0), ((0.01,) * 50, 1.0), ((8.0,) * 100, 8.0), ((600.0,) * 50, 60.0)]
)
def test_the_mean_gap_within_bounds(gaps: tuple[float, ...], seconds: float) -> None:
    assert after(*gaps).seconds == pytest.approx(seconds, rel=0.01)


def test_a_pause_does_not_count() -> None:
    rate = RetryAfter()
    for start in range(0, 1_000_000, 10_000):  # a second of work every few hours
        rate.resumed(float(start))
        rate.finished(start + 1.0)
    assert rate.seconds == pytest.approx(1.0)


async def test_the_engine_leaves_idle_time_out(
    running_engine: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(async_engine, "monotonic", lambda: clock[0])
    for _ in range(3):
        clock[0] += 100_000.0
        await collect(running_engine.ask(max_tokens=2))
    with pytest.raises(QueueFull) as caught:
        running_engine.ask(n=running_engine.engine.max_open + 1)
    assert caught.value.retry_after == 1.0
