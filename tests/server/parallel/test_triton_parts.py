"""Triton's layers on parts of a decoder: what they sum is what one of them computes with all of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from manylora.server.kernels.inputs import AdapterPages, StepInputs, lora_inputs
from manylora.server.kernels.reference.step import ReferenceStep
from tests.support.divided import Divided
from tests.support.kernel_cases import Batcher, Pages, Shape, in_float32, random_decoder

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda.backend import TritonStep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="threads take turns in Triton's interpreter"),
]

BLOCKS = 64
WEIGHTS = in_float32(
    random_decoder(
        Shape(hidden=64, intermediate=128, heads=4, kv_heads=2, head_dim=16, bias=True, qk_norm=True)
    )
)
PAGES = Pages(WEIGHTS)
PLAIN, SCALED = PAGES.random(5, 1), PAGES.random(4, 2, vectors=("gc", "g", "", "gc", "g", "c", "gci"))
MATRICES = PAGES.random(3, 3, vectors=("m", "gm", "b", "bm", "m", "bc", "bgi"))  # not of Triton's layers
PAIRED = PAGES.random(0, 4, vectors=("", "", "", "gp", "", "", "p"))  # outputs of sums, which are whole


STEPS = ((1, 1, 2), (1, 1, 1))  # a chunk of a prompt beside rows that decode, and such rows alone
MIXED = ((PLAIN,), (PLAIN, SCALED), (MATRICES, PAIRED, PLAIN))
SETS = [(), *(pytest.param(used, marks=pytest.mark.sweep) for used in MIXED)]


@pytest.mark.sweep
@pytest.mark.parametrize("used", SETS, ids=lambda used: str(len(used)))
def test_parts_make_the_whole(used: tuple[AdapterPages, ...]) -> None:
    divided = Divided(WEIGHTS, 2)
    whole_pool = PAGES.pool.float()
    pools, placed = divided.adapters(PAGES, used)
    steps = [TritonStep(weights, pool, BLOCKS) for weights, pool in zip(divided.weights, pools, strict=True)]
    reference = ReferenceStep(WEIGHTS, whole_pool, BLOCKS)
    batcher = Batcher(BLOCKS, WEIGHTS.vocab_size, first=1)
    rows = [batcher.sequence(length) for length in (4, 4, 6)]
    mixes = [[], [(a, 1.0) for a in used[:1]], [(a, 0.5 - i) for i, a in enumerate(used)]]
    own = dict(zip(map(id, used), placed, strict=True))
    theirs = [[(own[id(a)], w) for a, w in mix] for mix in mixes]
    for counts in STEPS:
        plain = Batcher.step(list(zip(rows, counts, strict=True)))
        expected = reference.step(replace(plain, lora=lora_inputs(mixes)))
        divided.meeting.sums = divided.meeting.joins = 0
        inputs = replace(plain, lora=lora_inputs(theirs))
        found = divided.meeting.run([partial(_logits, step, inputs) for step in steps])
        for logits in found:
            torch.testing.assert_close(logits, expected, atol=2e-3, rtol=2e-3)
        both = counts == STEPS[0] and MATRICES not in used
        parts = 2 if both else 1  # decode rows beside chunks are a step of their own
        assert divided.meeting.joins == parts
        assert divided.meeting.sums == 2 * len(WEIGHTS.layers) * parts


def _logits(step: TritonStep, inputs: StepInputs) -> torch.Tensor:
    return step.step(inputs).clone()
