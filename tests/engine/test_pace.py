"""How far prompts may stretch the steps of running answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.pace import Pace
from tests.engine.test_scheduler import add, scheduler, step

FLOOR, ROW = 0.009, 0.0006  # seconds: reading the weights, and a row


def seconds(rows: int) -> float:
    """A machine whose steps take what the law says."""
    return max(FLOOR, ROW * rows)


def learned(stretch: float = 2.0) -> Pace:
    pace = Pace(stretch)
    for rows in (1, 512):
        pace.observe(rows, seconds(rows))
    return pace


@given(st.integers(1, 400), st.floats(1.1, 20))
def test_a_step_takes_at_most_so_many_times_the_answers_own_time(answers: int, stretch: float) -> None:
    rows = learned(stretch).prompt_rows(answers)
    assert rows >= 16
    if rows > 16:
        assert seconds(answers + math.floor(rows)) <= stretch * seconds(answers) * (1 + 1e-9)
        assert seconds(answers + math.ceil(rows) + 1) > stretch * seconds(answers) * (1 - 1e-9)


def test_no_limit_before_anything_is_known_nor_without_answers() -> None:
    pace = Pace(2.0)
    assert pace.prompt_rows(5) == math.inf
    pace.observe(1, FLOOR)
    assert pace.prompt_rows(5) == math.inf, "a row's time is not known"
    assert learned().prompt_rows(0) == math.inf
    assert learned(math.inf).prompt_rows(5) == math.inf


def test_it_follows_a_machine_that_becomes_slower() -> None:
    pace = learned()
    before = pace.prompt_rows(4)
    for _ in range(100):
        pace.observe(512, 2 * seconds(512))
    assert pace.prompt_rows(4) == pytest.approx(max(16, before / 2 - 2), rel=0.01)


def test_one_long_step_does_not_stop_prompts() -> None:
    pace = learned()
    pace.observe(64, 60.0)
    assert pace.prompt_rows(1) == 16


def test_a_prompt_beside_answers_is_cut_and_one_alone_is_not() -> None:
    made = scheduler(tokens=512, pace=learned(), blocks=200)
    a, b = add(made, 100, 60, max_tokens=50)
    assert step(made) == {a.id: 100, b.id: 60}
    (c,) = add(made, 1000)
    allowed = int(learned().prompt_rows(2))
    assert allowed == 28
    assert step(made) == {a.id: 1, b.id: 1, c.id: allowed}
    assert step(made) == {a.id: 1, b.id: 1, c.id: allowed}, "one that has begun goes on at the same pace"
    made.remove(a)
    made.remove(b)
    assert step(made) == {c.id: 512}
