"""Adapters on routed experts in the native step: what they add, of which nobody beside changes a bit."""

from __future__ import annotations

import pytest
import torch

from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import Variant
from tests.support.kernel_cases import (
    VECTORS,
    Batcher,
    Pages,
    Sequence_,
    Shape,
    library_of,
    oracle,
    random_decoder,
    relative_error,
    variants_under_test,
)

pytestmark = pytest.mark.slow

BLOCKS = 64
SHAPES = {
    "few": Shape(experts=5, chosen=2, intermediate=48, layers=2, residual_scale=0.7),
    "many, GELU, norms behind": Shape(
        experts=40, chosen=7, normalized=False, intermediate=32, gelu=True, post_norms=True
    ),
    "in some layers": Shape(
        experts=6, routed=(True, False, True, False), layers=4, intermediate=160, expert_intermediate=48
    ),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@pytest.fixture(scope="module", params=variants_under_test(), ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest) -> Variant:
    chosen: Variant = request.param
    return chosen


def native_step(shape: Shape, pages: Pages, variant: Variant, threads: int = 2) -> NativeStep:
    return NativeStep(random_decoder(shape), pages.pool, BLOCKS, 8, threads, library=library_of(variant))


def logits_of(
    native: NativeStep, sequence: Sequence_, cuts: list[int], others: list[Sequence_]
) -> torch.Tensor:
    """Logits of every token of ``sequence``, computed in chunks of ``cuts`` beside ``others``."""
    for each in (sequence, *others):
        each.done = 0
    rows = []
    for count in cuts:
        beside = [(other, 1) for other in others if other.done < len(other.tokens)]
        logits = native.step(Batcher.step([*beside, (sequence, count)], all_logits=True))
        rows.append(logits[len(beside) :].clone())
    return torch.cat(rows)


@shapes
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_what_an_adapter_adds(shape: Shape, rows: int, variant: Variant) -> None:
    """Compared by itself, so that the base can't hide an error. The router sees the same: one layer."""
    shape = Shape(**{**vars(shape), "layers": 1})
    weights = random_decoder(shape)
    pages = Pages(weights)
    mix = (
        (pages.random(0, seed=1, strength=2.0, experts=4), 0.7),
        (pages.random(3, seed=2, experts=17), -0.4),
    )
    native, exact = native_step(shape, pages, variant), oracle(weights, pages.pool, BLOCKS)
    batch = Batcher(BLOCKS, shape.vocab)
    plain = batch.sequence(rows)
    for members in (mix[:1], mix):
        changed = Sequence_(plain.tokens, batch.sequence(rows).blocks, members)
        plain.done = 0
        inputs = [batch.step([(s, rows)], all_logits=True) for s in (plain, changed)]
        delta = native.step(inputs[1]).clone() - native.step(inputs[0])
        expected = exact.step(inputs[1]) - exact.step(inputs[0])
        assert expected.norm() > 0.1 * exact.step(inputs[0]).norm()
        errors = [relative_error(own, its) for own, its in zip(delta, expected, strict=True)]
        # A row whose router is nearly undecided may take another expert in fp32.
        assert sum(error > 0.08 for error in errors) <= rows // 20, sorted(errors)


@shapes
def test_the_same_bits_in_any_batch_chunking_and_number_of_threads(shape: Shape, variant: Variant) -> None:
    pages = Pages(random_decoder(shape))
    first, second = pages.random(0, seed=1, experts=5), pages.random(9, seed=2, experts=2)
    scaled = pages.random([4, 0, 3, 0], seed=3, vectors=VECTORS)
    plain = pages.random(6, seed=4)
    mix = ((first, 0.5), (scaled, 0.8), (second, -0.7))
    batch = Batcher(BLOCKS, shape.vocab)
    sequence, base = batch.sequence(100, mix), batch.sequence(100)
    others = [
        batch.sequence(n, m)
        for n, m in ((40, ()), (30, ((first, 2.0),)), (60, mix), (20, mix), (25, ((plain, 1.0),)))
    ]
    alone = logits_of(native_step(shape, pages, variant, threads=1), sequence, [100], [])
    untouched = logits_of(native_step(shape, pages, variant, threads=1), base, [100], [])
    assert not torch.equal(alone, untouched)
    for threads, cuts in ((1, [1] * 100), (3, [7] * 14 + [2]), (2, [60, 1, 1, 38])):
        native = native_step(shape, pages, variant, threads)
        assert torch.equal(logits_of(native, sequence, cuts, [*others, base]), alone)
        native = native_step(shape, pages, variant, threads)
        assert torch.equal(logits_of(native, base, cuts, [*others, sequence]), untouched)
