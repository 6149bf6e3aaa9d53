"""The thinning methods on cases worked out by hand."""

from __future__ import annotations

import pytest
import torch

from manylora.adapters.merge.lowrank import approximate
from manylora.adapters.merge.recipe import Recipe
from manylora.adapters.merge.sparse import disjoint_mean, keep_largest, keep_random, merge_sparse

ONE = torch.tensor([[4.0, -1.0, 2.0], [0.5, -3.0, 1.0]])
TWO = torch.tensor([[-2.0, -5.0, 1.0], [6.0, 0.1, 0.2]])


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (1.0, [[4.0, -1.0, 2.0], [0.5, -3.0, 1.0]]),
        (0.5, [[4.0, 0.0, 2.0], [0.0, -3.0, 0.0]]),
        (0.34, [[4.0, 0.0, 0.0], [0.0, -3.0, 0.0]]),
        (0.1, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_keep_largest(density: float, expected: list[list[float]]) -> None:
    assert keep_largest(ONE, density).tolist() == expected


def test_dare_rescales() -> None:
    """What is kept is divided by the density, so that the sum stays what it was on average."""
    change = torch.ones(400, 500)
    kept = keep_random(change, 0.25, torch.Generator().manual_seed(0))
    assert kept.unique().tolist() == [0.0, 4.0]
    assert abs(float(kept.mean()) - 1) < 0.02
    assert abs(float((kept != 0).float().mean()) - 0.25) < 0.005


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # sums: 2+, -6-, 3+, 6.5+, -2.9-, 1.2+; where only one agrees, its value; else the mean
        ("total", [[4.0, -3.0, 1.5], [3.25, -3.0, 0.6]]),
        # one vote each in the first and fifth place: the sum decides
        ("frequency", [[4.0, -3.0, 1.5], [3.25, -3.0, 0.6]]),
    ],
)
def test_disjoint_mean(method: str, expected: list[list[float]]) -> None:
    torch.testing.assert_close(disjoint_mean(torch.stack([ONE, TWO]), method), torch.tensor(expected))


@pytest.mark.parametrize(("method", "expected"), [("total", -5.0), ("frequency", 1.5)])
def test_who_elects_the_sign(method: str, expected: float) -> None:
    """Two small ones against a large one."""
    assert disjoint_mean(torch.tensor([[1.0], [2.0], [-5.0]]), method).item() == expected


def test_opposite_members_give_the_opposite() -> None:
    both = torch.stack([ONE, TWO])
    for method in ("total", "frequency"):
        assert torch.equal(disjoint_mean(-both, method), -disjoint_mean(both, method))


def test_ties() -> None:
    """Halved: one has 4, 2, -3 and two has -2, -5, 6; with weight 2 for two: -4, -10, 12."""
    recipe = Recipe("ties", rank=2, density=0.5, sign_method="total")
    found = merge_sparse([("a", ONE, 1.0), ("b", TWO, 2.0)], "m", recipe)
    assert found.tolist() == [[0.0, -10.0, 2.0], [12.0, -3.0, 0.0]]


def test_a_negative_weight_turns_a_member_around() -> None:
    recipe = Recipe("ties", rank=2, density=1.0, sign_method="total")
    found = merge_sparse([("a", ONE, 1.0), ("b", -TWO, -1.0)], "m", recipe)
    assert torch.equal(found, merge_sparse([("a", ONE, 1.0), ("b", TWO, 1.0)], "m", recipe))


def test_magnitude_prune_is_a_plain_sum() -> None:
    found = merge_sparse([("a", ONE, 1.0), ("b", TWO, 2.0)], "m", Recipe("magnitude_prune", 2, 0.5))
    assert found.tolist() == [[0.0, -10.0, 2.0], [12.0, -3.0, 0.0]]


def test_dare_drops_the_same_whoever_else_is_merged() -> None:
    recipe = Recipe("dare_linear", rank=2, density=0.5, seed=7)
    alone = merge_sparse([("a", ONE, 1.0)], "m", recipe)
    both = merge_sparse([("b", TWO, 1.0), ("a", ONE, 1.0)], "m", recipe)
    other = merge_sparse([("b", TWO, 1.0)], "m", recipe)
    torch.testing.assert_close(both, alone + other)
    different = [
        merge_sparse([("a", ONE, 1.0)], m, Recipe("dare_linear", 2, 0.5, s)) for m in "mn" for s in (7, 8)
    ]
    assert len({tuple(d.flatten().tolist()) for d in different}) > 1
    assert torch.equal(different[0], alone)


def test_dare_ties_elects_among_what_is_left() -> None:
    recipe = Recipe("dare_ties", rank=2, density=1.0, seed=0, sign_method="total")
    found = merge_sparse([("a", ONE, 1.0), ("b", TWO, 1.0)], "m", recipe)
    torch.testing.assert_close(found, disjoint_mean(torch.stack([ONE, TWO]), "total"))


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_the_best_approximation(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(shape[0], 3))
    v, _ = torch.linalg.qr(torch.randn(shape[1], 3))
    matrix = u @ torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ v.T
    factors, energy = approximate(matrix, 2)
    assert energy.total == pytest.approx(14)
    assert energy.lost == pytest.approx(1)
    torch.testing.assert_close(
        factors.b @ factors.a, u[:, :2] @ torch.diag(torch.tensor([3.0, 2.0])) @ v[:, :2].T
    )
    whole, nothing = approximate(matrix, 9)
    assert whole.rank == 3
    assert nothing.share_lost < 1e-12
