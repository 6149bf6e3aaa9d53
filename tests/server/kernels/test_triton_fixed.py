"""Deterministic steps: a row has the same bits in any company, decoded or in a prompt cut in any way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from manylora.server.kernels.codes import Kind
from manylora.server.kernels.inputs import EmbeddedRows, StepInputs
from manylora.server.kernels.reference.quantized import CodedLinear, Quantized
from manylora.server.kernels.reference.step import ReferenceStep
from tests.support.coded import coded, random_codes
from tests.support.kernel_cases import Batcher, Pages, Sequence_, on, random_decoder

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda.backend import TritonStep
from manylora.server.kernels.cuda.fixed.products import FixedLinear, FixedPart, multiply, unsupported_codes
from manylora.server.kernels.cuda.fixed.step import FixedStep
from tests.support.fixed_cases import (
    BLOCKS,
    SMALL,
    Case,
    alone,
    case_of,
    hidden_too,
    logits_by_row,
    schedules,
)

BF16, FP32 = torch.bfloat16, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [BF16, FP32], ids=["bf16", "fp32"])
CASES = {dtype: case_of(dtype) for dtype in (BF16, FP32)}
FEW, LENGTH = 5, 19  # tokens of the shortest sequence: interpreted, each takes its time


@DTYPES
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 40, 50), (17, 130, 33), (70, 64, 96)])
def test_products(device: torch.device, dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    """Full tiles and others, of rows, inputs and outputs; with a bias; of a weight that is turned over."""
    generator = torch.Generator().manual_seed(rows)
    x, w, b = (
        torch.randn(*size, generator=generator) for size in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    x, w, b = (t.to(dtype).to(device) for t in (x, w, b))
    expected = F.linear(x.double(), w.double(), b.double())
    for weight in (w, w.T.contiguous().T):
        found = multiply(x, weight, b)
        assert found.dtype == dtype
        assert (found.double() - expected).norm() / expected.norm() < (1e-6 if dtype == FP32 else 8e-3)
    assert torch.equal(FixedLinear(w, None)(x), multiply(x, w))
    assert multiply(x[:0], w).shape == (0, outputs)


@DTYPES
def test_a_row_of_a_product_has_the_same_bits_among_any_others(
    device: torch.device, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(70, 130, generator=generator).to(dtype).to(device)
    w = torch.randn(40, 130, generator=generator).to(dtype).to(device)
    together = multiply(x, w)
    for rows in ([69], [0, 69], [3, 64, 65, 5], list(range(69, 48, -1))):
        assert torch.equal(multiply(x[rows], w), together[rows])


def check_bits(
    case: Case, step: FixedStep, run: Callable[[StepInputs], torch.Tensor], seed: int, length: int = FEW
) -> None:
    """Every row of a random schedule has the bits of its sequence that is computed at once, alone."""
    expected: dict[int, torch.Tensor] = {}
    pieces = set()
    for work in schedules(case, seed, length):
        for sequence, span, logits in logits_by_row(run, work):
            if id(sequence) not in expected:
                expected[id(sequence)] = alone(step.fused.step, sequence.tokens, sequence.mix)
            assert torch.equal(logits, expected[id(sequence)][span]), (sequence.mix, span)
            pieces.add(min(span.stop - span.start, 2))
    assert pieces == {1, 2}, "rows that decode, and chunks"
    assert len(expected) == len(case.mixes)
    assert all(torch.isfinite(logits).all() for logits in expected.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "seed"),
    [
        (BF16, 0),
        pytest.param(FP32, 1, marks=pytest.mark.sweep),
        *(pytest.param(dtype, seed, marks=pytest.mark.sweep) for dtype in CASES for seed in range(2, 7)),
    ],
)
def test_bits_in_any_company_and_any_pieces(device: torch.device, dtype: torch.dtype, seed: int) -> None:
    """Replayed, beside those that are launched; in the sweep longer, and launched as well."""
    case, long = CASES[dtype] if seed < 2 else case_of(dtype, more=True), seed > 1
    step = case.step(device)
    launched = seed % 3 == 2
    check_bits(case, step, step.fused.step if launched else step.step, seed, LENGTH if long else FEW)
    assert bool(step.steps.buffers) is not launched


@pytest.mark.slow
def test_without_the_mode_they_differ(device: torch.device) -> None:
    """Rows that decode go through other kernels than the same ones as part of a prompt."""
    case = CASES[FP32]
    usual = TritonStep(on(device, case.weights), case.pool.to(device), BLOCKS)
    fixed = case.step(device)
    batcher = Batcher(BLOCKS, SMALL.vocab, first=1)
    tokens, mix = batcher.sequence(6).tokens, case.mixes[1]
    for run, same in ((usual.step, False), (fixed.step, True)):
        whole = alone(run, tokens, mix)
        sequence = Sequence_(tokens, batcher.sequence(6).blocks, mix)
        run(Batcher.step([(sequence, 5)]))
        assert torch.equal(run(Batcher.step([(sequence, 1)])), whole[5:]) is same


@pytest.mark.slow
def test_blocks_of_a_prefix_that_others_have_computed(device: torch.device) -> None:
    """As the prefix cache shares them: computed by one sequence in chunks, read by another."""
    case = CASES[BF16]
    step, mix = case.step(device), case.mixes[1]
    batcher = Batcher(BLOCKS, SMALL.vocab, first=1)
    first = batcher.sequence(17, mix)
    expected = alone(step.step, first.tokens, mix)
    for count in (5, 1, 10):
        step.step(Batcher.step([(first, count)]))
    second = Sequence_(first.tokens, [first.blocks[0], batcher.sequence(1).blocks[0]], mix, done=16)
    assert torch.equal(step.step(Batcher.step([(second, 1)], all_logits=True)), expected[16:])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Kind.NIBBLES, pytest.param(Kind.BYTES, marks=pytest.mark.sweep)])
def test_a_base_in_few_bits(kind: Kind) -> None:
    """Matrices of several kinds, too. The codes lie in modules of the CPU, and stay there."""
    if torch.cuda.is_available():
        pytest.skip("interpreted only: test_triton_codes.py has the same kernel on a GPU")
    case = CASES[FP32]
    weights = coded(case.weights, kind, 16, values=Kind.SHIFTED if kind is Kind.NIBBLES else None)
    assert unsupported_codes(weights) is None
    step = FixedStep(weights, case.pool, BLOCKS)
    few = replace(case, mixes=case.mixes[:2])
    check_bits(few, step, step.step, 0)
    reference = ReferenceStep(weights, case.pool, BLOCKS)
    inputs = Batcher.step([(Batcher(BLOCKS, SMALL.vocab, first=1).sequence(6, case.mixes[1]), 6)])
    torch.testing.assert_close(step.step(inputs).cpu(), reference.step(inputs), atol=2e-3, rtol=2e-3)


def test_a_matrix_that_was_left_in_sixteen_bits_beside_others() -> None:
    codes = random_codes(Kind.PLAIN, 24, 40, 40)
    part = FixedPart(Quantized(CodedLinear(codes, torch.ones(24).bfloat16(), BF16)))
    x = torch.randn(3, 40).bfloat16()
    assert torch.equal(part(x), multiply(x, codes.packed, part.bias))
    assert (part.shape, part.codes, part.waits) == ((24, 40), codes, False)
    assert part.nbytes == codes.packed.nbytes + 48


@pytest.mark.slow
@pytest.mark.sweep
def test_rows_on_merged_copies(device: torch.device) -> None:
    case = CASES[BF16]
    step, few = case.step(device), replace(case, mixes=case.mixes[:2])
    merged = step.merged()
    generator = torch.Generator().manual_seed(3)
    for group in (case.weights.groups()[1], case.weights.groups()[3], case.weights.groups()[-1]):
        made = [torch.randn(case.weights.weight(m).shape, generator=generator) * 0.2 for m in group]
        merged.put(group, [one.to(BF16).to(device) for one in made], [None] * len(group))
    sequence = Batcher(BLOCKS, SMALL.vocab, first=1).sequence(3)
    base = alone(step.step, sequence.tokens, ())

    def run(inputs: StepInputs) -> torch.Tensor:
        return step.step(replace(inputs, merged=merged))

    whole = alone(run, sequence.tokens, ())
    assert not torch.equal(whole, base)
    for work in schedules(few, 5, 3):
        for other, span, logits in logits_by_row(run, work):
            assert torch.equal(logits, alone(run, other.tokens, other.mix)[span])


@pytest.mark.slow
def test_given_embeddings_and_states_that_are_wanted(device: torch.device) -> None:
    """As vocabularies of adapters, soft prompts and embeddings need them."""
    case = CASES[BF16]
    step = case.step(device)
    batcher = Batcher(BLOCKS, SMALL.vocab, first=1)
    given = torch.randn(1, SMALL.hidden).to(device)

    def states(*others: Sequence_) -> torch.Tensor:
        own = batcher.sequence(4)
        own.tokens = [1, 2, 3, 4]
        inputs = Batcher.step([(own, 4), *((other, len(other.tokens)) for other in others)], all_logits=True)
        return hidden_too(step, replace(inputs, embedded=EmbeddedRows(np.array([2]), given)))[1][:4]

    expected = states()
    assert torch.equal(states(batcher.sequence(3, case.mixes[3]), batcher.sequence(1)), expected)
    assert torch.isfinite(expected).all()


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize(
    "change",
    [
        {
            "qk_norm": True,
            "post_norms": True,
            "gelu": True,
            "norm_offset": 1.0,
            "windows": (3,),
            "score_cap": 5.0,
            "logit_cap": 8.0,
        },
        {"stacked": True, "turned": 8, "residual_scale": 0.7},
        {"ropes": (None,), "head_dim": 24, "embedding_scale": 3.0},
    ],
)
def test_features_of_families(device: torch.device, change: dict[str, object]) -> None:
    """The numbers are PyTorch's, and the bits are kept."""
    case = case_of(FP32, replace(SMALL, **change))  # type: ignore[arg-type]
    step = case.step(device)
    check_bits(replace(case, mixes=case.mixes[:4:3]), step, step.step, 6)
    reference = ReferenceStep(case.weights, case.pool, BLOCKS)
    batcher = Batcher(BLOCKS, SMALL.vocab, first=1)
    sequences = [batcher.sequence(20, mix) for mix in case.mixes]
    for counts in ([4, 3, 1, 2], [1] * 4):
        inputs = Batcher.step(list(zip(sequences, counts, strict=True)))
        torch.testing.assert_close(step.step(inputs).cpu(), reference.step(inputs), atol=2e-3, rtol=2e-3)


def test_what_is_refused() -> None:
    for change, said in (
        ({"experts": 4}, "experts"),
        ({"pre_norms": False, "post_norms": True}, "no norm before a product"),
        ({"qk_norm": True, "joint_qk_norm": True}, "a norm of all heads together"),
    ):
        assert said in str(FixedStep.unsupported(random_decoder(replace(SMALL, **change))))


def test_an_adapter_that_is_not_taken_runs_no_step(device: torch.device) -> None:
    """It never takes another way than the others: it is refused when it is loaded."""
    weights = CASES[FP32].weights
    pages = Pages(weights, 1 << 18)
    odd = pages.random(1, 5, vectors=("", "", "", "i"))
    step = FixedStep(on(device, weights), pages.pool.float().to(device), 8)
    with pytest.raises(ValueError, match="can't be computed in one way"):
        step.step(Batcher.step([(Sequence_([0], [1], ((odd, 1.0),)), 1)]))
