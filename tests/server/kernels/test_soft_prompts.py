"""Virtual tokens in the steps of every backend: given embeddings, and entries copied into the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import usable_variants
from manylora.server.kernels.inputs import BLOCK_SIZE, CacheRun, EmbeddedRows, PromptRun, StepInputs
from manylora.server.kernels.reference.soft_prompts import embed_prompts
from manylora.server.kernels.reference.step import ReferenceStep
from manylora.server.kernels.weights import DecoderWeights
from tests.support.kernel_cases import (
    Batcher,
    Sequence_,
    Shape,
    in_float32,
    library_of,
    on,
    oracle,
    random_decoder,
    relative_error,
    variants_under_test,
)

BLOCKS = 24
SHAPE = Shape(heads=6, kv_heads=2, qk_norm=True, windows=(None, 40))
ELEMENTS = SHAPE.layers * 2 * SHAPE.kv_heads * SHAPE.head_dim  # of a position in the cache
START = 64
TEXT = 19

Step = NativeStep | ReferenceStep
Make = Callable[[DecoderWeights, torch.Tensor], Step]
MAKES: dict[str, Make] = {
    "pytorch": lambda weights, pool: ReferenceStep(weights, pool, BLOCKS),
    **{
        variant.name: (
            lambda weights, pool, variant=variant: NativeStep(  # type: ignore[misc]
                weights, pool, BLOCKS, 4, 2, library=library_of(variant)
            )
        )
        for variant in variants_under_test()
    },
}
backends = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


def pool_of(tokens: int, elements: int = ELEMENTS) -> torch.Tensor:
    """A pool with random virtual tokens, and what nobody may read behind them."""
    generator = torch.Generator().manual_seed(tokens)
    pool = torch.full((START + tokens * elements + 64,), torch.nan, dtype=torch.bfloat16)
    pool[:START] = 0
    pool[START : START + tokens * elements] = torch.randn(tokens * elements, generator=generator).bfloat16()
    return pool


def slots_of(sequence: Sequence_, tokens: int) -> np.ndarray:
    positions = np.arange(tokens)
    return np.array(sequence.blocks, np.int64)[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE


def steps_of(sequence: Sequence_, tokens: int, chunk: int) -> Iterator[StepInputs]:
    """The text behind ``tokens`` virtual ones, in chunks, all logits wanted."""
    sequence.done = tokens
    run = CacheRun(slots_of(sequence, tokens), START)
    while sequence.done < len(sequence.tokens):
        first = sequence.done == tokens
        count = min(chunk, len(sequence.tokens) - sequence.done)
        inputs = Batcher.step([(sequence, count)], all_logits=True)
        yield replace(inputs, cached=(run,)) if first else inputs


def logits_of(step: Step, sequence: Sequence_, tokens: int, chunk: int) -> torch.Tensor:
    return torch.cat([step.step(inputs).clone() for inputs in steps_of(sequence, tokens, chunk)])


@pytest.mark.slow
@backends
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 33])
def test_copied_keys_and_values_are_attended_to(make: Make, tokens: int) -> None:
    weights, pool = random_decoder(SHAPE), pool_of(tokens)
    sequence = Batcher(BLOCKS, SHAPE.vocab).sequence(tokens + TEXT)
    exact = logits_of(oracle(weights, pool, BLOCKS), sequence, tokens, TEXT)
    step = make(weights, pool)
    whole = logits_of(step, sequence, tokens, TEXT)
    rounded = logits_of(ReferenceStep(weights, pool, BLOCKS), sequence, tokens, TEXT)
    assert relative_error(whole, exact) < 1.5 * relative_error(rounded, exact) + 1e-3
    if isinstance(step, NativeStep):
        assert torch.equal(logits_of(step, sequence, tokens, 1), whole)
        assert torch.equal(logits_of(step, sequence, tokens, 7), whole)
    other = make(weights, pool_of(tokens) * 0.5)
    assert relative_error(logits_of(other, sequence, tokens, TEXT), exact) > 0.02


@backends
@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_what_a_block_held_before_does_not_matter(make: Make, tokens: int) -> None:
    """Not even values that are no numbers, behind the copied ones in their block."""
    weights = random_decoder(SHAPE)
    broken = pool_of(tokens + 40)
    start = START + tokens * ELEMENTS
    broken[start:] = torch.nan
    broken[:start] = pool_of(tokens)[:start]
    step = make(weights, broken)
    sequence = Batcher(BLOCKS, SHAPE.vocab).sequence(tokens + TEXT)
    full = slots_of(sequence, tokens + TEXT)
    inputs = next(steps_of(sequence, tokens, TEXT))
    step.step(replace(inputs, cached=(CacheRun(full, start),)))
    again = logits_of(step, sequence, tokens, TEXT)
    assert torch.equal(again, logits_of(make(weights, pool_of(tokens)), sequence, tokens, TEXT))


@pytest.mark.parametrize("variant", usable_variants()[:1], ids=lambda variant: variant.name)
def test_places_outside_are_refused(variant: object) -> None:
    del variant
    weights, pool = random_decoder(SHAPE), pool_of(3)
    step = NativeStep(weights, pool, BLOCKS, 4, 1)
    sequence = Batcher(BLOCKS, SHAPE.vocab).sequence(3 + TEXT)
    inputs = next(steps_of(sequence, 3, TEXT))
    slots = slots_of(sequence, 3)
    for run in (CacheRun(slots, -1), CacheRun(slots, len(pool)), CacheRun(slots, START + 65)):
        with pytest.raises(ValueError, match="virtual tokens lie outside the pool"):
            step.step(replace(inputs, cached=(run,)))
    for wrong in (slots - 10**6, slots + 10**6):
        with pytest.raises(ValueError, match="slot lies outside the KV cache"):
            step.step(replace(inputs, cached=(CacheRun(wrong, START),)))


def test_given_embeddings_come_from_the_pool() -> None:
    """In the order of the rows, whatever else is given, and a virtual token is what the pool has."""
    pool = pool_of(8, 4)
    inputs = Batcher.step([(Batcher(BLOCKS, 101).sequence(12), 12)])
    assert embed_prompts(pool, 4, inputs) is inputs
    runs = (PromptRun(1, 2, START), PromptRun(6, 3, START + 8))
    alone = embed_prompts(pool, 4, replace(inputs, prompts=runs)).embedded
    assert alone is not None
    assert alone.rows.tolist() == [1, 2, 6, 7, 8]
    assert torch.equal(alone.values, pool[START : START + 20].view(5, 4).float())
    given = EmbeddedRows(np.array([0, 2, 5, 8, 11]), torch.arange(20.0).view(5, 4))
    both = embed_prompts(pool, 4, replace(inputs, prompts=runs, embedded=given)).embedded
    assert both is not None
    assert both.rows.tolist() == [0, 1, 2, 5, 6, 7, 8, 11]
    expected = [given.values[0], *alone.values[:2], given.values[2], *alone.values[2:], given.values[4]]
    assert torch.equal(both.values, torch.stack(expected))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.sweep), TEXT])
def test_in_triton(device: torch.device, chunk: int) -> None:
    """A step that copies is no replayed one; those behind it read what it copied."""
    from manylora.server.kernels.cuda.backend import TritonStep

    weights, pool = in_float32(random_decoder(SHAPE)), pool_of(17).float()
    sequence = Batcher(BLOCKS, SHAPE.vocab, first=1).sequence(17 + TEXT)
    triton = TritonStep(on(device, weights), pool.to(device), BLOCKS)
    found = torch.cat([triton.step(inputs).cpu().clone() for inputs in steps_of(sequence, 17, chunk)])
    expected = logits_of(ReferenceStep(weights, pool, BLOCKS), sequence, 17, TEXT)
    assert relative_error(found, expected) < 1e-4
