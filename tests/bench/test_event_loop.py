"""The benchmark of the event loop: a server in this process, its own load, and a profile."""

from __future__ import annotations

import cProfile
from pathlib import Path

import orjson
import pytest

from bench.event_loop import Cost, measured, shares, summary


@pytest.mark.slow
def test_a_server_is_measured_and_profiled_under_load(tiny_llama: Path) -> None:
    load = ("--workload", "base@4", "--prompt-tokens", "16", "--rounds", "1", "--output-tokens", "20")
    cost, profile = measured(tiny_llama, load)
    assert cost.tokens == 2 * 4 * 20  # each client warms up
    assert 0 < cost.loop_seconds < cost.seconds
    assert sum(profile.values()) == pytest.approx(1, abs=0.01)
    assert {"uvicorn", "sse_starlette", "formatting: server/api", "delivery: server/engine"} <= set(profile)


def test_time_goes_to_the_part_whose_code_took_it() -> None:
    with cProfile.Profile() as profile:
        for _ in range(100):
            orjson.dumps(list(range(1000)))
    assert max(shares(profile).items(), key=lambda item: item[1])[0].startswith("native code")


def test_the_figures_are_for_800_tokens_a_second() -> None:
    found = summary(Cost(tokens=1000, seconds=1.0, loop_seconds=0.05), metrics=2.5)
    assert found["loop_microseconds"] == 50
    assert found["cores_at_800_tokens_a_second"] == pytest.approx(0.042)
