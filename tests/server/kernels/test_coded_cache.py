"""Keys and values in 8 bits: what is lost, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import Variant
from manylora.server.kernels.inputs import CacheRun
from manylora.server.kernels.reference.coded_cache import decode, encode
from manylora.server.kernels.reference.step import ReferenceStep
from tests.support.kernel_cases import (
    Batcher,
    Pages,
    Sequence_,
    Shape,
    in_float32,
    library_of,
    oracle,
    random_decoder,
    relative_error,
)

BLOCKS = 128
SHAPES = {
    "plain": Shape(),
    "groups of 3": Shape(heads=9, kv_heads=3, head_dim=64, hidden=96, intermediate=160, vocab=300),
    "head size 80, windows": Shape(heads=14, kv_heads=2, head_dim=80, windows=(40, None, 16), layers=3),
}


def coded_step(shape: Shape, pages: Pages, variant: Variant, threads: int = 2) -> NativeStep:
    weights, library = random_decoder(shape), library_of(variant)
    return NativeStep(weights, pages.pool, BLOCKS, 8, threads, coded_cache=True, library=library)


def test_a_vector_is_kept_to_half_a_code() -> None:
    torch.manual_seed(0)
    vectors = (torch.randn(500, 64) * torch.logspace(-30, 30, 500)[:, None]).bfloat16()
    vectors[0] = 0
    codes, scales = encode(vectors)
    assert codes.dtype == torch.int8
    assert codes[0].eq(0).all()
    assert (codes[1:].abs().amax(-1) >= 126).all()  # the scale has 8 bits: the largest is off by one at most
    kept = decode(codes, scales)
    bound = 0.5 * scales.float() + vectors.float().abs().amax(-1, keepdim=True) * 2.0**-8
    assert ((kept - vectors.float()).abs() <= bound).all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_steps_err_no_more_than_the_reference(shape: Shape, variant: Variant) -> None:
    """Against exact arithmetic on a cache in full, both err alike: more than without codes, by the codes."""
    weights = random_decoder(shape)
    pages = Pages(weights)
    adapter = pages.random(5, seed=1)
    backends = (
        coded_step(shape, pages, variant),
        ReferenceStep(weights, pages.pool, BLOCKS, coded_cache=True),
        ReferenceStep(in_float32(weights), pages.pool.float(), BLOCKS, coded_cache=True),
        oracle(weights, pages.pool, BLOCKS),
    )
    batch = Batcher(BLOCKS, shape.vocab)
    sequences = [batch.sequence(n, m) for n, m in ((200, ()), (17, ((adapter, 1.0),)), (41, ()))]
    errors = []
    for counts in ([len(s.tokens) - 3 for s in sequences], [1] * 3, [1] * 3, [1] * 3):
        inputs = batch.step(list(zip(sequences, counts, strict=True)), all_logits=True)
        *found, exact = (backend.step(inputs) for backend in backends)
        errors.append([relative_error(logits, exact) for logits in found])
    native, rounded, codes_alone = np.sqrt(np.square(errors).mean(axis=0))
    assert native < 1.3 * rounded, errors
    assert 1e-4 < codes_alone < 0.05, errors


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_same_bits_in_any_batch_chunking_and_number_of_threads(name: str, variant: Variant) -> None:
    shape = SHAPES[name]
    pages = Pages(random_decoder(shape))
    batch = Batcher(BLOCKS, shape.vocab)
    mix = ((pages.random(5, seed=1), 0.5),)
    sequence, others = batch.sequence(150, mix), [batch.sequence(n) for n in (60, 30, 90)]

    def logits(threads: int, cuts: list[int]) -> torch.Tensor:
        native = coded_step(shape, pages, variant, threads)
        sequence.done, rows = 0, []
        for other in others:
            other.done = 0
        for count in cuts:
            beside = [(other, 1) for other in others if other.done < len(other.tokens) and len(cuts) > 1]
            step = native.step(Batcher.step([*beside, (sequence, count)], all_logits=True))
            rows.append(step[len(beside) :].clone())
        return torch.cat(rows)

    alone = logits(1, [150])
    for threads, cuts in ((1, [1] * 150), (2, [150]), (2, [1] * 150), (3, [7] * 21 + [3]), (2, [130, 1, 19])):
        assert torch.equal(logits(threads, cuts), alone)


def test_leftovers_of_another_sequence_do_not_leak(variant: Variant) -> None:
    shape = Shape(vocab=64)
    weights = random_decoder(shape)
    weights.embedding[63] = torch.inf
    pool = Pages(weights).pool
    native, fresh = (
        NativeStep(weights, pool, BLOCKS, 8, 2, coded_cache=True, library=library_of(variant))
        for _ in range(2)
    )
    blocks = [5, 3]
    for cuts in ([21], [1] * 21, [8, 13]):
        native.step(Batcher.step([(Sequence_([63] * 32, blocks), 32)]))
        sequence = Sequence_(list(range(21)), blocks)
        for count in cuts:
            inputs = Batcher.step([(sequence, count)], all_logits=True)
            ours = native.step(inputs)
            assert ours.isfinite().all()
            assert torch.equal(ours, fresh.step(inputs))


@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_what_adapters_put_into_the_cache_is_coded_as_well(tokens: int, variant: Variant) -> None:
    shape = SHAPES["plain"]
    weights = random_decoder(shape)
    width = shape.layers * 2 * shape.kv_heads * shape.head_dim
    pool = torch.zeros(64 + tokens * width, dtype=torch.bfloat16)
    pool[64:] = torch.randn(tokens * width, generator=torch.Generator().manual_seed(tokens)).bfloat16()
    sequence = Batcher(BLOCKS, shape.vocab).sequence(tokens + 20)
    places = np.arange(tokens)
    slots = np.array(sequence.blocks, np.int64)[places // 16] * 16 + places % 16
    sequence.done = tokens
    inputs = replace(Batcher.step([(sequence, 20)], all_logits=True), cached=(CacheRun(slots, 64),))
    native, rounded, exact = (
        step.step(inputs)
        for step in (
            NativeStep(weights, pool, BLOCKS, 8, 2, coded_cache=True, library=library_of(variant)),
            ReferenceStep(weights, pool, BLOCKS, coded_cache=True),
            oracle(weights, pool, BLOCKS),
        )
    )
    assert relative_error(native, exact) < 1.3 * relative_error(rounded, exact)


@pytest.mark.parametrize("backend", [NativeStep, ReferenceStep])
def test_a_block_takes_little_more_than_half(backend: type[NativeStep | ReferenceStep]) -> None:
    weights = random_decoder(SHAPES["groups of 3"])
    plain = backend.kv_bytes_per_block(weights)
    assert plain == 16 * 2 * 2 * 3 * 64 * 2
    assert backend.kv_bytes_per_block(weights, coded_cache=True) == plain * 66 // 128
