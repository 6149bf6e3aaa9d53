"""How far prompts may stretch the steps of running answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.engine.prompt_budget import PromptBudget
from tests.support.scheduling import add, scheduler, step

START, ROW = 0.009, 0.0006  # seconds: whatever a step has in it, and a row
MANY = (100_000,)  # tokens of prompts that wait


def seconds(rows: int) -> float:
    """A machine whose steps take what the law says."""
    return START + ROW * rows


def learned(stretch: float = 2.0) -> PromptBudget:
    pace = PromptBudget(stretch)
    for _ in range(200):
        for rows in (1, 512):
            pace.observe(rows, seconds(rows))
    return pace


@given(st.integers(1, 400), st.integers(0, 400), st.floats(1.1, 20))
def test_a_step_takes_at_most_so_many_times_the_answers_own_time(
    answers: int, joining: int, stretch: float
) -> None:
    rows = learned(stretch).prompt_rows(answers, MANY, joining=joining)
    assert rows >= 16
    if rows > 16:
        taken = seconds(answers) + ROW * rows
        assert taken == pytest.approx(stretch * seconds(answers + joining), rel=0.01)


@given(st.integers(1, 400), st.lists(st.integers(1, 2000)), st.floats(2, 20))
def test_a_few_tokens_are_spread_over_steps_of_twice_the_time(
    answers: int, prompts: list[int], stretch: float
) -> None:
    pace = learned(stretch)
    gentle = pace.prompt_rows(answers, (), joining=len(prompts))
    assert gentle == max(16, learned(2.0).prompt_rows(answers, MANY))
    few = sum(prompts) <= 4 * (START / ROW + answers) * 0.99
    many = sum(prompts) > 4 * (START / ROW + answers) * 1.01
    if few or many:
        assert pace.prompt_rows(answers, prompts) == (gentle if few else pace.prompt_rows(answers, MANY))


def test_no_limit_before_anything_is_known_nor_without_answers() -> None:
    pace = PromptBudget(2.0)
    assert pace.prompt_rows(5, MANY) == math.inf
    pace.observe(1, seconds(1))
    assert pace.prompt_rows(5, MANY) == math.inf, "a row's time is not known"
    assert learned().prompt_rows(0, MANY) == math.inf
    assert learned(math.inf).prompt_rows(5, ()) == math.inf


def test_it_follows_a_machine_that_becomes_slower_and_faster() -> None:
    pace = learned()
    before = pace.prompt_rows(100, MANY)
    for _ in range(100):
        pace.observe(512, 4 * seconds(512))
        pace.observe(4, seconds(4))  # as before: so prompts are what has become dearer
    assert pace.prompt_rows(100, MANY) - 100 < 0.5 * (before - 100)
    for _ in range(100):
        pace.observe(512, seconds(512))
        pace.observe(4, seconds(4))
    assert pace.prompt_rows(100, MANY) == pytest.approx(before, rel=0.05)


def test_one_long_step_does_not_slow_prompts_for_long() -> None:
    """Afterwards, no step is long enough to learn the time of a row from."""
    pace = learned()
    before = pace.prompt_rows(4, MANY)
    pace.observe(64, 60.0)
    for _ in range(60):
        pace.observe(20, seconds(20))
    assert pace.prompt_rows(4, MANY) > before / 2


def test_a_prompt_beside_answers_is_cut_and_one_alone_is_not() -> None:
    made = scheduler(tokens=512, prompt_budget=learned(), blocks=200)
    a, b = add(made, 100, 60, max_tokens=50)
    assert step(made) == {a.id: 100, b.id: 60}
    (c,) = add(made, 1000)
    allowed = int(learned().prompt_rows(2, MANY, joining=1))
    assert 18 <= allowed <= 19
    assert step(made) == {a.id: 1, b.id: 1, c.id: allowed}
    assert step(made) == {a.id: 1, b.id: 1, c.id: allowed}, "one that has begun goes on at the same pace"
    made.remove(a)
    made.remove(b)
    assert step(made) == {c.id: 512}
