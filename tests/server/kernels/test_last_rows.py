"""Rows whose logits nobody wants leave the native step early, which changes no bit of the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import usable_variants
from manylora.server.kernels.inputs import StepInputs
from tests.support.kernel_cases import (
    VECTORS,
    Batcher,
    Mix,
    Pages,
    Sequence_,
    Shape,
    library_of,
    random_decoder,
)

BLOCKS = 64
LENGTHS = (70, 1, 33, 2, 5, 48, 1, 1, 20)
SHAPES = {
    "plain": Shape(),
    "one layer": Shape(layers=1, qk_norm=True),
    "windows": Shape(windows=(None, 40), layers=2, heads=9, kv_heads=3, head_dim=64, hidden=96),
}


def wanted(inputs: StepInputs, counts: list[int]) -> np.ndarray:
    """The last rows of each sequence, so many of it."""
    ends = inputs.query_start[1:].tolist()
    return np.array(
        [row for end, n in zip(ends, counts, strict=True) for row in range(end - n, end)], np.int64
    )


def scattered(rows: int) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(0).random(rows) < 0.3)


@pytest.fixture(params=SHAPES.values(), ids=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> Shape:
    chosen: Shape = request.param
    return chosen


@pytest.fixture(params=["base", "adapters", "vectors"])
def mixes(request: pytest.FixtureRequest, shape: Shape) -> tuple[Pages, list[Mix]]:
    pages = Pages(random_decoder(shape))
    small, odd = pages.random(3, seed=1), pages.random([17, 1, 0, 5, 40, 3, 16], seed=2)
    scaled = pages.random([4, 0, 3, 0, 0, 9, 2], seed=3, vectors=VECTORS)
    one, two = ((small, 1.0),), ((odd, -0.5), (small, 1.5))
    kinds: dict[str, list[Mix]] = {
        "base": [()] * 9,
        "adapters": [one, one, two, (), one, two, (), two, one],
        "vectors": [((scaled, 1.0),), one, ((odd, 0.3), (scaled, -0.7)), (), one, two, (), two, one],
    }
    return pages, kinds[request.param]


def test_a_row_has_the_same_logits_whichever_others_are_wanted(
    shape: Shape, mixes: tuple[Pages, list[Mix]]
) -> None:
    pages, own = mixes
    library = library_of(usable_variants()[0])
    native = NativeStep(random_decoder(shape), pages.pool, BLOCKS, 8, 2, library=library)
    batch = Batcher(BLOCKS, shape.vocab)
    sequences = [batch.sequence(n + 1, mix) for n, mix in zip(LENGTHS, own, strict=True)]
    prompts = batch.step(list(zip(sequences, LENGTHS, strict=True)), all_logits=True)
    everything = native.step(prompts).clone()
    following = batch.step([(s, 1) for s in sequences])
    after = native.step(following).clone()
    assert len(everything) == sum(LENGTHS)
    choices = {
        "the last of each": wanted(prompts, [1] * 9),
        "some of some": wanted(prompts, [0, 1, 3, 2, 0, 30, 0, 1, 20]),
        "one": wanted(prompts, [0, 0, 0, 0, 0, 1, 0, 0, 0]),
        "none": wanted(prompts, [0] * 9),
        "all but one": np.arange(1, sum(LENGTHS)),
        "scattered": scattered(sum(LENGTHS)),
    }
    for name, rows in choices.items():
        assert torch.equal(native.step(replace(prompts, logits_rows=rows)), everything[rows]), name
        assert torch.equal(native.step(following), after), f"keys or values after {name}"


def test_keys_and_values_are_written_for_rows_that_are_not_wanted(shape: Shape) -> None:
    """The cache is empty before, unlike above."""
    weights = random_decoder(shape)
    library = library_of(usable_variants()[0])
    answers = []
    for want_all in (True, False):
        native = NativeStep(weights, Pages(weights).pool, BLOCKS, 8, 2, library=library)
        sequence: Sequence_ = Batcher(BLOCKS, shape.vocab).sequence(40)
        prompt = Batcher.step([(sequence, 39)], all_logits=True)
        native.step(prompt if want_all else replace(prompt, logits_rows=prompt.logits_rows[:0]))
        answers.append(native.step(Batcher.step([(sequence, 1)])).clone())
    assert torch.equal(*answers)
