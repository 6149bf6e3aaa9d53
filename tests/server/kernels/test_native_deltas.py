"""What single adapters add in the native step, compared by itself with what fp32 arithmetic gives."""

from __future__ import annotations

import pytest

from manylora.server.kernels.cpu.build import Variant
from tests.support.kernel_cases import (
    Batcher,
    Pages,
    Sequence_,
    Shape,
    oracle,
    random_decoder,
    relative_error,
)
from tests.support.native_cases import BLOCKS, native_step

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 8, 16, 17, 31, 64])
@pytest.mark.parametrize("rows", [1, 2, 3, 60])
def test_the_delta_of_an_adapter(rank: int, rows: int, variant: Variant) -> None:
    """What an adapter changes, compared by itself, so that the base can't hide an error."""
    shape = Shape(hidden=80, intermediate=112, layers=1)
    weights = random_decoder(shape)
    pages = Pages(weights)
    mix = ((pages.random(rank, seed=rank, strength=2.0), 0.7),)
    native, exact = native_step(shape, pages, variant), oracle(weights, pages.pool, BLOCKS)
    batch = Batcher(BLOCKS, shape.vocab)
    plain = batch.sequence(rows)
    changed = Sequence_(plain.tokens, batch.sequence(rows).blocks, mix)
    inputs = [batch.step([(s, rows)], all_logits=True) for s in (plain, changed)]
    delta = native.step(inputs[1]).clone() - native.step(inputs[0])
    expected = exact.step(inputs[1]) - exact.step(inputs[0])
    assert expected.norm() > 0.1 * exact.step(inputs[0]).norm()
    assert relative_error(delta, expected) < 0.05


@pytest.mark.parametrize("rows", [1, 2, 3, 60])
@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize(
    "letters", [*(pytest.param(letter, marks=pytest.mark.sweep) for letter in "gcimpb"), "gcimpb"]
)
def test_the_delta_of_vectors(letters: str, place: int, rows: int, variant: Variant) -> None:
    """On each module by itself; twice in one mix, with other weights."""
    check_delta_of_vectors(
        Shape(hidden=80, intermediate=112, layers=1, bias=True), letters, place, rows, variant
    )


@pytest.mark.parametrize("rows", [1, 3, 60])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("letters", ["m", "p", "gcimpb"])
def test_the_delta_of_vectors_of_stacked_modules(
    letters: str, place: int, rows: int, variant: Variant
) -> None:
    """Of q, k and v together, and of gate and up, whose halves are multiplied."""
    shape = Shape(hidden=80, intermediate=160, layers=1, bias=True, stacked=True)
    check_delta_of_vectors(shape, letters, place, rows, variant)


def check_delta_of_vectors(shape: Shape, letters: str, place: int, rows: int, variant: Variant) -> None:
    weights = random_decoder(shape)
    pages = Pages(weights)
    adapters = [
        pages.random(0, seed=seed, strength=3.0, vectors=[letters if m == place else "" for m in range(7)])
        for seed in (1, 2)
    ]
    mix = ((adapters[0], 0.7), (adapters[1], -0.4))
    native, exact = native_step(shape, pages, variant), oracle(weights, pages.pool, BLOCKS)
    batch = Batcher(BLOCKS, shape.vocab)
    plain = batch.sequence(rows)
    changed = Sequence_(plain.tokens, batch.sequence(rows).blocks, mix)
    inputs = [batch.step([(s, rows)], all_logits=True) for s in (plain, changed)]
    delta = native.step(inputs[1]).clone() - native.step(inputs[0])
    expected = exact.step(inputs[1]) - exact.step(inputs[0])
    whole = exact.step(inputs[0]).norm()
    assert (delta - expected).norm() < 0.05 * expected.norm() + 0.005 * whole
    if place > 1:  # a few rows hardly tell what q and k are
        assert expected.norm() > 0.05 * whole
