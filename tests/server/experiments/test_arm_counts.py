"""What answers add up to, against numpy on the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.server.engine.sequence import FinishReason, ResolvedMix, SamplingParams, Sequence
from manylora.server.experiments.arm_counts import MEASURES, REASONS, Tally, add, answered, scored


def ended(prompt: int, output: int, first: float, gap: float, *, index: int = 0) -> Sequence:
    """One that arrived at 0 and drew ``output`` tokens, one every ``gap`` seconds from ``first`` on."""
    sequence = Sequence(1, (1,) * prompt, SamplingParams(max_tokens=output), ResolvedMix(), index=index)
    sequence.token_ids += [2] * output
    if output:
        sequence.first_token = first
        sequence.last_token = first + gap * (output - 1)
    return sequence


ANSWER = st.tuples(
    st.integers(1, 5000),
    st.integers(0, 400),
    st.floats(1e-3, 30.0),
    st.floats(1e-4, 1.0),
    st.sampled_from(FinishReason),
)


@given(st.lists(ANSWER, max_size=30), st.lists(st.booleans(), min_size=30, max_size=30))
def test_tallies_of_parts_add_up_to_that_of_the_whole(
    answers: list[tuple[int, int, float, float, FinishReason]], elsewhere: list[bool]
) -> None:
    here: dict[str, float] = {}
    there: dict[str, float] = {}
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for (prompt, output, first, gap, reason), other in zip(answers, elsewhere, strict=False):
        end = first + gap * output
        counts = answered(ended(prompt, output, first, gap), reason, 0.0, end)
        add(there if other else here, counts)
        values["prompt_tokens"].append(prompt)
        if output:
            values["time_to_first_token_seconds"].append(first)
        if output > 1:
            values["inter_token_seconds"].append(gap)
        if reason in {FinishReason.STOP, FinishReason.LENGTH}:
            values["request_seconds"].append(end)
            values["completion_tokens"].append(output)
    add(here, there)
    tally = Tally(here)
    assert tally.answers == len(answers)
    assert [tally.ended(r) for r in REASONS] == [sum(a[4].value == r for a in answers) for r in REASONS]
    for name, expected in values.items():
        found = tally.sums(name)
        assert found.count == len(expected)
        if expected:
            assert found.mean == pytest.approx(float(np.mean(expected)))
            for fraction in (0.5, 0.95):
                exact = float(np.quantile(expected, fraction, method="inverted_cdf"))
                assert exact == 0 or tally.quantile(name, fraction) == pytest.approx(exact, rel=0.05)
        else:
            assert tally.quantile(name, 0.5) is None
        if len(expected) > 1:
            spread = float(np.var(expected, ddof=1))
            assert found.variance == pytest.approx(spread, rel=1e-4, abs=1e-9 * max(expected) ** 2)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])), max_size=40))
def test_a_later_score_replaces_the_earlier(given_scores: list[tuple[int, float]]) -> None:
    counts: dict[str, float] = {}
    last: dict[int, float] = {}
    for answer, score in given_scores:
        add(counts, scored(score))
        if answer in last:
            add(counts, scored(last[answer], sign=-1))
        last[answer] = score
    tally, values = Tally(counts), list(last.values())
    assert tally.sums("score").count == len(values)
    if values:
        assert tally.score is not None
        assert tally.score.estimate == pytest.approx(float(np.mean(values)))
        binary = set(values) <= {0.0, 1.0} or len(set(values)) == 1
        assert tally.score.method == ("wilson" if binary else "t")
    else:
        assert tally.score is None


def test_several_answers_to_one_prompt_read_it_once() -> None:
    counts: dict[str, float] = {}
    for index in range(3):
        add(counts, answered(ended(7, 2, 0.1, 0.1, index=index), FinishReason.STOP, 0.0, 0.3))
    assert Tally(counts).sums("prompt_tokens").total == 7
    assert Tally(counts).sums("completion_tokens").total == 6


def test_a_tally_stays_small() -> None:
    counts: dict[str, float] = {}
    for exponent in range(-60, 60):
        add(
            counts, answered(ended(1, 3, 2.0**exponent, 2.0**exponent), FinishReason.STOP, 0.0, 2.0**exponent)
        )
    assert len(counts) < 5 * 400
