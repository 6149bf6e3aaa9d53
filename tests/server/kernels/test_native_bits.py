"""The native step gives a row the same bits in any batch, and nothing of another's ever gets into them."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import Variant
from tests.support.kernel_cases import (
    CHANGES,
    MIXED_INPUTS,
    PAIRS,
    VECTORS,
    Batcher,
    Pages,
    Sequence_,
    Shape,
    library_of,
    random_decoder,
)
from tests.support.native_cases import BLOCKS, FEATURES, SHAPES, STACKED, native_step

# Of what has its bits compared: of features with all that adapters do; the rest in the long run.
BITS = [
    *product(("plain", "groups of 3", "groups of 7, head size 80", "windows"), ("base", "mix", "vectors")),
    *product(("plain", "groups of 3", "groups of 7, head size 80"), ("changes", "pairs", "blocks")),
    *((name, "vectors") for name in FEATURES[:-1]),
    *((STACKED, adapted) for adapted in ("changes", "pairs", "blocks")),
    *(pytest.param(*case, marks=pytest.mark.sweep) for case in product(FEATURES, ("base", "mix"))),
    pytest.param(FEATURES[-1], "vectors", marks=pytest.mark.sweep),
]


def logits_of(
    native: NativeStep, sequence: Sequence_, cuts: list[int], others: list[Sequence_]
) -> torch.Tensor:
    """Logits of every token of ``sequence``, computed in chunks of ``cuts`` beside ``others``."""
    sequence.done = 0
    rows = []
    for count in cuts:
        beside = [(other, 1) for other in others if other.done < len(other.tokens)]
        logits = native.step(Batcher.step([*beside, (sequence, count)], all_logits=True))
        rows.append(logits[len(beside) :].clone())
    return torch.cat(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "adapted"), BITS)
def test_the_same_bits_in_any_batch_chunking_and_number_of_threads(
    name: str, adapted: str, variant: Variant
) -> None:
    shape = SHAPES[name]
    pages = Pages(random_decoder(shape))
    first, second = pages.random(5, seed=1), pages.random(33, seed=2)
    scaled = pages.random([4, 0, 3, 0, 0, 9, 2], seed=3, vectors=VECTORS)
    inputs_only = pages.random(0, seed=4, vectors=["i"] * 7)
    whole = pages.random([0, 4, 0, 0, 3, 0, 0], seed=5, vectors=CHANGES)
    pairs = pages.random([0, 0, 2, 3, 0, 0, 0], seed=7, vectors=PAIRS)
    blocks = pages.random([0, 0, 2, 3, 0, 0, 0], seed=8, vectors=MIXED_INPUTS)
    wholes_only = pages.random(0, seed=6, vectors=["m"] * 7)
    mix = {
        "base": (),
        "mix": ((first, 0.5), (second, 1.0)),
        "vectors": ((first, 0.5), (scaled, 0.8), (inputs_only, -0.3)),
        "changes": ((whole, 0.6), (first, 0.5), (wholes_only, -0.3), (scaled, 0.8)),
        "blocks": ((blocks, 0.6), (first, 0.5), (whole, 0.4), (inputs_only, 0.8)),
        "pairs": ((pairs, 0.6), (first, 0.5), (whole, 0.4), (inputs_only, 0.8)),
    }[adapted]
    batch = Batcher(BLOCKS, shape.vocab)
    sequence = batch.sequence(200, mix)
    others = [
        batch.sequence(n, m)
        for n, m in (
            (60, ()),
            (30, ((first, 2.0),)),
            (90, mix),
            (20, mix),
            (8, mix),
            (40, ((inputs_only, 1.0),)),
            (25, ((scaled, 1.0), (second, 0.2))),
            (35, ((wholes_only, 1.0),)),
            (9, ((pairs, 1.0),)),
            (12, ((blocks, 1.0),)),
        )
    ]
    alone = logits_of(native_step(shape, pages, variant, threads=1), sequence, [200], [])
    for threads, cuts in (
        (2, [1] * 200),
        (2, [200]),
        (1, [7] * 28 + [4]),
        (3, [130, 1, 1, 68]),
    ):
        for other in others:
            other.done = 0
        native = native_step(shape, pages, variant, threads)
        assert torch.equal(logits_of(native, sequence, cuts, others), alone)


def test_leftovers_of_another_sequence_do_not_leak(variant: Variant) -> None:
    """A sequence that overflowed leaves NaN in its blocks; whoever gets the blocks next must not see them."""
    shape = Shape(vocab=64)
    weights = random_decoder(shape)
    weights.embedding[63] = torch.inf
    pages = Pages(weights)
    native = NativeStep(weights, pages.pool, BLOCKS, 8, 2, library=library_of(variant))
    fresh = NativeStep(weights, pages.pool, BLOCKS, 8, 2, library=library_of(variant))
    blocks = [5, 3]
    poisoned = Sequence_([63] * 32, blocks)
    assert native.step(Batcher.step([(poisoned, 32)])).isnan().all()
    for cuts in ([21], [1] * 21, [8, 13]):
        sequence = Sequence_(list(range(21)), blocks)
        steps = [Batcher.step([(sequence, count)], all_logits=True) for count in cuts]
        for inputs in steps:
            ours = native.step(inputs)
            assert ours.isfinite().all()
            assert torch.equal(ours, fresh.step(inputs))
        native.step(Batcher.step([(Sequence_([63] * 32, blocks), 32)]))


def test_a_neighbour_that_overflows_does_not_leak(variant: Variant) -> None:
    shape = Shape(vocab=64)
    weights = random_decoder(shape)
    weights.embedding[63] = torch.inf
    native = NativeStep(weights, Pages(weights).pool, BLOCKS, 8, 2, library=library_of(variant))
    batch = Batcher(BLOCKS, 60)
    good, bad = batch.sequence(40), Sequence_([63] * 40, batch.sequence(40).blocks)
    alone = native.step(batch.step([(good, 40)])).clone()
    good.done = 0
    both = native.step(batch.step([(bad, 40), (good, 40)]))
    assert torch.equal(both[1], alone[0])
