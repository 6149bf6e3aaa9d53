"""Divergences from logits: by the textbook, at the edges, and exactly zero where they must be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.adapters.fidelity.measures import NotNumbers
from manylora.server.comparison.divergence import distances, scores
from manylora.server.comparison.verdict import THRESHOLDS, Level, level_of, verdict


def draw(seed: int, rows: int = 21, width: int = 53, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


def test_against_the_definitions() -> None:
    a, b = draw(1), draw(2)
    found = distances(a, b)
    p, q = a.double().softmax(-1).tolist(), b.double().softmax(-1).tolist()
    for row, (ps, qs) in enumerate(zip(p, q, strict=True)):
        kl = math.fsum(x * math.log(x / y) for x, y in zip(ps, qs, strict=True))
        middle = [(x + y) / 2 for x, y in zip(ps, qs, strict=True)]
        js = math.fsum(
            0.5 * (x * math.log(x / m) + y * math.log(y / m)) for x, y, m in zip(ps, qs, middle, strict=True)
        )
        assert found.kl[row] == pytest.approx(kl, rel=1e-12)
        assert found.js[row] == pytest.approx(js, rel=1e-12)
        assert found.logits[row] == float((a[row].double() - b[row].double()).abs().max())


def test_a_two_token_case_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    p, q = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    found = distances(p, q)
    assert found.kl[0] == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2), rel=1e-6)
    assert distances(q, p).kl[0] == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert found.js == pytest.approx(distances(q, p).js, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 100))
def test_equal_logits_are_exactly_zero_and_nothing_is_negative(seed: int, scale: float) -> None:
    a, b = draw(seed, scale=scale), draw(seed + 1, scale=scale)
    same, apart = distances(a, a.clone()), distances(a, b)
    assert same.kl == same.js == same.logits == [0.0] * len(a)
    assert all(x >= 0 for x in apart.kl)
    assert all(0 <= x <= math.log(2) for x in apart.js)


def test_a_shift_of_all_logits_changes_the_difference_only() -> None:
    a = draw(3)
    found = distances(a, a + 2)
    assert max(found.kl) < 1e-12
    assert max(found.js) < 1e-12
    assert found.logits == pytest.approx([2.0] * len(a), abs=1e-5)


def test_impossible_tokens_give_finite_numbers() -> None:
    a, b = draw(4), draw(5)
    a[:, 0] = b[:, 0] = float("-inf")
    b[:, 1] = float("-inf")
    found = distances(a, b)
    assert all(math.isfinite(x) for x in (*found.kl, *found.js, *found.logits))
    assert max(found.kl) > 100
    assert scores(b, [1] * len(b)).logprobs == [-9999.0] * len(b)


def test_a_model_with_fewer_tokens_finds_the_others_impossible() -> None:
    wide, narrow = draw(10), draw(11, width=50)
    padded = torch.nn.functional.pad(narrow, (0, 3), value=float("-inf"))
    assert distances(wide, narrow) == distances(wide, padded)
    assert distances(narrow, wide) == distances(padded, wide)
    assert min(distances(wide, narrow).kl) > max(distances(narrow, wide).js)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_distribution_is_refused(value: float) -> None:
    a = draw(6)
    a[20, 3] = value
    with pytest.raises(NotNumbers):
        scores(a, [0] * len(a))
    with pytest.raises(NotNumbers):
        distances(draw(7), a)


def test_scores() -> None:
    a = draw(8)
    tokens = [i % 53 for i in range(len(a))]
    found = scores(a, tokens)
    expected = a.double().log_softmax(-1)[range(len(a)), tokens].tolist()
    assert found.logprobs == pytest.approx(expected, rel=1e-12)
    assert found.top1 == a.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("mean", "largest", "level"),
    [
        (0.0, 0.0, Level.EQUAL),
        (1e-3, 2e-2, Level.EQUAL),
        (1e-3, 3e-2, Level.SMALL),
        (2e-3, 2e-2, Level.SMALL),
        (5e-2, 1.0, Level.SMALL),
        (5e-2, 1.1, Level.DIFFERENT),
        (6e-2, 0.1, Level.DIFFERENT),
        (math.inf, math.inf, Level.DIFFERENT),
    ],
)
def test_levels(mean: float, largest: float, level: Level) -> None:
    assert level_of(mean, largest) is level


def test_the_verdict_names_every_target_and_its_thresholds() -> None:
    found = verdict("base", [("a", Level.EQUAL), ("b", Level.DIFFERENT), ("c", Level.EQUAL)])
    assert found["level"] == "different"
    assert "a and c: equal up to rounding. b: different." in found["sentence"]
    assert [t["max_kl"] for t in found["thresholds"]] == [*(t.max_kl for t in THRESHOLDS), None]
