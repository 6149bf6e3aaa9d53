"""Measures of fidelity: by hand, by their definitions, at the edges, and in pieces as in one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from manylora.adapters.fidelity.measures import (
    LOG_ZERO,
    ROWS_TOGETHER,
    js_divergence,
    kl_divergence,
    largest_differences,
    log_probabilities,
    relative_distance,
    relative_errors,
    relative_peak,
    same_likeliest,
)
from manylora.adapters.fidelity.probing import hooked, random_prompts
from manylora.adapters.fidelity.totals import Totals

NAN, INF = math.nan, math.inf


def draw(seed: int, rows: int = 2 * ROWS_TOGETHER + 3, width: int = 53) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 4


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        ([0.0, 2.0], [0.0, 2.0], 0.0),
        ([0.0, 2.0], [1.0, 3.0], 1 / math.sqrt(2)),  # rms 1, standard deviation sqrt 2
        ([0.0, 2.0], [0.0, 4.0], 1.0),
        ([1.0, 1.0], [1.0, 2.0], INF),  # no spread to compare with
        ([1.0, 1.0], [1.0, 1.0], INF),
        ([0.0, 2.0], [NAN, 2.0], INF),
        ([0.0, NAN], [0.0, 2.0], INF),
        ([0.0, 2.0], [0.0, INF], INF),
    ],
)
def test_relative_errors(expected: list[float], found: list[float], error: float) -> None:
    got = relative_errors(torch.tensor([[0.0, 1.0], expected]), torch.tensor([[0.0, 1.0], found]))
    assert got.tolist() == pytest.approx([0.0, error])


@pytest.mark.parametrize(
    ("expected", "found", "distance"),
    [
        ([[3.0, 4.0]], [[3.0, 4.0]], 0.0),
        ([[3.0, 4.0]], [[0.0, 0.0]], 1.0),
        ([[3.0], [4.0]], [[3.0], [9.0]], 1.0),
        ([[3.0], [4.0]], [[3.0], [NAN]], NAN),
    ],
)
def test_relative_distance(expected: list[list[float]], found: list[list[float]], distance: float) -> None:
    got = relative_distance(torch.tensor(expected), torch.tensor(found))
    assert got == pytest.approx(distance, nan_ok=True)


@pytest.mark.parametrize(
    ("expected", "found", "peak", "by_row", "same"),
    [
        ([[1.0, -4.0], [2.0, 0.0]], [[1.0, -4.0], [2.0, 0.0]], 0.0, [0.0, 0.0], [True, True]),
        ([[1.0, -4.0], [2.0, 0.0]], [[1.0, -3.0], [2.0, 3.0]], 0.75, [1.0, 3.0], [True, False]),
    ],
)
def test_differences_of_single_logits(
    expected: list[list[float]], found: list[list[float]], peak: float, by_row: list[float], same: list[bool]
) -> None:
    one, other = torch.tensor(expected), torch.tensor(found)
    assert relative_peak(one, other) == peak
    assert largest_differences(one, other).tolist() == by_row
    assert same_likeliest(one, other).tolist() == same


def test_an_impossible_token_is_a_finite_distance_away() -> None:
    one, other = torch.tensor([[0.0, -INF]]), torch.tensor([[0.0, -INF]])
    assert largest_differences(one, other).tolist() == [0.0]
    assert largest_differences(one, torch.zeros(1, 2)).tolist() == [-LOG_ZERO]
    assert log_probabilities(one).tolist() == [[0.0, LOG_ZERO]]
    assert kl_divergence(log_probabilities(one), log_probabilities(other)).tolist() == [0.0]


def test_log_probabilities_are_those_of_float64() -> None:
    logits = draw(1)
    assert log_probabilities(logits).equal(logits.double().log_softmax(-1))
    logits[3, 5] = NAN
    assert log_probabilities(logits).isnan().all(-1).nonzero().flatten().tolist() == [3]


def test_divergences_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2)."""
    p, q = log_probabilities(torch.tensor([[math.log(3), 0.0]])), log_probabilities(torch.zeros(1, 2))
    assert float(kl_divergence(p, q)) == pytest.approx(0.75 * math.log(1.5) - 0.25 * math.log(2), rel=1e-6)
    assert float(kl_divergence(q, p)) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    middle = log_probabilities(torch.tensor([[math.log(5 / 3), 0.0]]))
    wanted = (float(kl_divergence(p, middle)) + float(kl_divergence(q, middle))) / 2
    assert float(js_divergence(p, q)) == pytest.approx(wanted, rel=1e-6)


def test_nothing_is_changed_in_place() -> None:
    one, other = draw(2).double(), draw(3).double()
    one[0, 0] = -INF
    before = one.clone(), other.clone()
    p, q = log_probabilities(one), log_probabilities(other)
    kept = p.clone(), q.clone()
    for measure in (relative_errors, relative_peak, largest_differences, same_likeliest, relative_distance):
        measure(one, other)
    kl_divergence(p, q)
    js_divergence(p, q)
    assert all(a.equal(b) for a, b in zip((one, other, p, q), (*before, *kept), strict=True))


def test_pieces_are_as_good_as_the_whole() -> None:
    one, other = draw(4), draw(5)
    whole = (other - one).pow(2).mean(-1).sqrt() / one.std(-1)
    assert relative_errors(one, other).equal(whole)
    assert relative_distance(one, other) == pytest.approx(float((one - other).norm() / one.norm()), rel=1e-6)


def test_totals_are_those_of_all_rows() -> None:
    one, other = draw(6), draw(7)
    totals = Totals()
    for rows in zip(one.split(4), other.split(4), strict=True):
        totals.add(*rows)
    p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
    assert totals.rows == len(one)
    assert totals.mean_kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-12)
    assert totals.top1_agreement == float((one.argmax(-1) == other.argmax(-1)).float().mean())
    assert totals.largest == max(map(relative_peak, one.split(4), other.split(4)))


def test_totals_of_equal_rows() -> None:
    totals = Totals()
    totals.add(draw(8), draw(8))
    assert (totals.mean_kl, totals.largest, totals.top1_agreement) == (0.0, 0.0, 1.0)


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.words = nn.Embedding(7, 3)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.words

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = 2 * self.inner(x)
        return result


def test_hooks_are_gone_after_the_block() -> None:
    model, x = Doubling(), torch.ones(2)
    with hooked(model, {"inner": lambda _module, inputs, y: y + 1 + inputs[0]}):
        assert model(x).tolist() == [6.0, 6.0]
    assert model(x).tolist() == [2.0, 2.0]


def test_hooks_are_gone_after_a_fault() -> None:
    model, x = Doubling(), torch.ones(2)
    with pytest.raises(IndexError), hooked(model, {"inner": lambda _module, inputs, y: y + inputs[1]}):
        model(x)
    assert model(x).tolist() == [2.0, 2.0]


def test_random_prompts_are_the_same_for_everyone() -> None:
    one, other = (random_prompts(Doubling(), (5, 3)) for _ in range(2))
    assert [ids.shape for ids in one] == [(5,), (3,)]
    assert all(a.equal(b) for a, b in zip(one, other, strict=True))
    assert all(ids.min() >= 0 and ids.max() < 7 for ids in one)
