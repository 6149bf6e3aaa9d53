"""The sampler on large vocabularies: candidates instead of all tokens, pieces instead of one long sum."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from manylora.server.engine.sampling.sampler import SampledRows, sample
from manylora.server.kernels.draws import Draw
from manylora.server.kernels.reference.sampling import candidates
from tests.support.sequences import make_sequence

END = frozenset({3})
PROMPT = (0, 1)


class Fixed(random.Random):
    """A stream of one number."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self._value = value

    def random(self) -> float:
        return self._value


@pytest.mark.parametrize("vocabulary", [4000, 40_000])
@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_p": 0.999}, 0.999),
        ({"top_p": 0.5}, 0.5),
        ({"top_k": 3000}, None),
        ({"top_k": 3000, "top_p": 0.5}, None),
        ({"min_p": 0.9}, 1.0),
        ({}, 1.0),
    ],
)
def test_a_nucleus_beyond_the_first_candidates(
    draw: Draw, params: dict[str, Any], kept: float | None, vocabulary: int
) -> None:
    """A nearly flat distribution: a share ``u`` of the kept tokens is drawn below ``u``."""
    size = params["top_k"] * params.get("top_p", 1.0) if kept is None else kept * vocabulary
    shares = [0.0, 0.25, 0.5, 0.75, 1 - 1e-9]
    rows = [make_sequence(PROMPT, **params) for _ in shares]
    for row, share in zip(rows, shares, strict=True):
        row.rng = Fixed(share)
    logits = (-torch.arange(vocabulary) * 1e-7).expand(len(rows), -1)
    near = 2e-3 * size + 1
    assert sample(logits, SampledRows(rows), END, draw) == pytest.approx(
        [share * size for share in shares], abs=near
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [700, 40_000, 49_153])
def test_candidates_are_the_likeliest_tokens_in_order(dtype: torch.dtype, vocabulary: int) -> None:
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(0)).to(dtype).float()
    logits[1] *= 20
    logits[2] = 0.0
    logits[3, 100:] = -math.inf
    values, order = candidates(logits)
    for row, (found, ids) in enumerate(zip(values, order, strict=True)):
        best = logits[row].sort(descending=True, stable=True)
        count = int((found > -math.inf).sum())
        assert count >= min(512, int((logits[row] > -math.inf).sum()))
        assert torch.equal(found[:count], best.values[:count])
        assert torch.equal(ids[:count], best.indices[:count])


def test_no_token_without_probability_is_drawn(draw: Draw) -> None:
    """However close to 1 the number is: the last tokens are banned."""
    logits = torch.zeros(1, 1000)
    logits[:, 600:] = -math.inf
    row = make_sequence(PROMPT)
    row.rng = Fixed(1 - 2**-53)
    assert sample(logits, SampledRows([row]), END, draw) == [599]
