"""Single kernels and whole native steps on random decoders of many shapes, against fp32 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manylora.server.kernels.cpu import NativeStep
from manylora.server.kernels.cpu.build import Variant, usable_variants
from manylora.server.kernels.reference.step import ReferenceStep
from tests.support.kernel_cases import (
    VECTORS,
    Batcher,
    Pages,
    Shape,
    library_of,
    oracle,
    random_decoder,
    relative_error,
)
from tests.support.native_cases import BLOCKS, SHAPES, native_step


def test_exp_is_accurate_to_two_units(variant: Variant) -> None:
    x = torch.cat(
        [torch.linspace(-87.0, 88.0, 4096), torch.tensor([0.0, -0.0, -1e-8, -88.0, -1e30, -torch.inf])]
    )
    x = torch.nn.functional.pad(x, (0, -len(x) % 16))
    y = torch.empty_like(x)
    library_of(variant).native.manylora_exp(x.data_ptr(), y.data_ptr(), len(x))
    exact = torch.where(x < -87, 0.0, x.double().exp())
    assert torch.all((y - exact).abs() <= exact * 2 * 2.0**-23)
    assert torch.all(y[x == 0] == 1)


def test_exp_keeps_nan(variant: Variant) -> None:
    x = torch.full((16,), torch.nan)
    y = torch.zeros(16)
    library_of(variant).native.manylora_exp(x.data_ptr(), y.data_ptr(), 16)
    assert y.isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 11, 12, 13, 25, 49, 150])
@pytest.mark.parametrize(("outputs", "inputs"), [(33, 16), (96, 48), (160, 576), (7, 144)])
def test_gemm(variant: Variant, rows: int, outputs: int, inputs: int) -> None:
    torch.manual_seed(rows)
    native = library_of(variant).native
    x, weight = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    padded = outputs + -outputs % 32
    packed, y = torch.empty(padded * inputs, dtype=torch.bfloat16), torch.empty(rows, padded)
    native.manylora_pack(weight.data_ptr(), packed.data_ptr(), outputs, inputs)
    native.manylora_gemm(x.data_ptr(), packed.data_ptr(), y.data_ptr(), rows, outputs, inputs, 2)
    exact = x.double() @ weight.double().T
    assert (y[:, :outputs] - exact).abs().max() < 1e-5 * inputs
    assert (y[:, outputs:] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_steps_err_no_more_than_bf16_must(shape: Shape, variant: Variant) -> None:
    """Prompts of uneven length together, then decode; base, single adapters and mixes in one batch."""
    weights = random_decoder(shape)
    pages = Pages(weights)
    small, odd = pages.random(3, seed=1), pages.random([17, 1, 0, 5, 64, 3, 16], seed=2)
    scaled = pages.random([4, 0, 3, 0, 0, 9, 2], seed=3, vectors=VECTORS)
    backends = (
        native_step(shape, pages, variant),
        ReferenceStep(weights, pages.pool, BLOCKS),
        oracle(weights, pages.pool, BLOCKS),
    )
    batch = Batcher(BLOCKS, shape.vocab)
    mixes = [
        (),
        ((small, 1.0),),
        ((odd, 1.0),),
        ((odd, -0.5), (small, 1.5)),
        ((small, 1.0),),
        (),
        ((scaled, 1.0),),
        ((odd, 0.3), (scaled, -0.7)),
        ((scaled, 1.0),),
    ]
    lengths = (300, 17, 40, 16, 5, 4, 30, 6, 4)
    sequences = [batch.sequence(n, mix) for n, mix in zip(lengths, mixes, strict=True)]
    errors = []
    for counts in ([len(s.tokens) - 3 for s in sequences], [1] * 9, [1] * 9, [1] * 9):
        inputs = batch.step(list(zip(sequences, counts, strict=True)), all_logits=True)
        native, rounded, exact = (backend.step(inputs) for backend in backends)
        errors.append((relative_error(native, exact), relative_error(rounded, exact)))
    ours, theirs = np.sqrt(np.square(errors).mean(axis=0))
    assert ours < 1.3 * theirs, errors


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 15, 16, 17, 127, 128, 129, 260, 1000])
@pytest.mark.parametrize("window", [None, 1, 100, 128])
def test_long_contexts(length: int, window: int | None, variant: Variant) -> None:
    """Block, chunk and window boundaries; a lone long row is split over the threads by context."""
    shape = Shape(windows=(window,), layers=1, positions=1024)
    weights = random_decoder(shape)
    pages = Pages(weights)
    native, exact = native_step(shape, pages, variant, threads=3), oracle(weights, pages.pool, BLOCKS)
    sequence = Batcher(BLOCKS, shape.vocab).sequence(length + 1)
    for count in (length, 1):
        inputs = Batcher.step([(sequence, count)], all_logits=True)
        assert relative_error(native.step(inputs), exact.step(inputs)) < 0.02


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("token_ids", 101, "token id"),
        ("token_ids", -1, "token id"),
        ("positions", 1024, "position"),
        ("slots", BLOCKS * 16, "slot"),
        ("block_tables", BLOCKS, "block"),
        ("context", 33, "disagree"),
        ("query_start", 1, "disagree"),
        ("logits_rows", 4, "logits row"),
    ],
)
def test_indices_outside_are_refused(field: str, value: int, said: str) -> None:
    shape = Shape()
    native = native_step(shape, Pages(random_decoder(shape)), usable_variants()[0])
    sequence = Batcher(BLOCKS, shape.vocab).sequence(20)
    Batcher.step([(sequence, 16)])
    inputs = Batcher.step([(sequence, 4)])
    getattr(inputs, field).flat[0] = value
    with pytest.raises(ValueError, match=said):
        native.step(inputs)


def test_what_is_unsupported_is_said() -> None:
    weights = random_decoder(Shape())
    assert NativeStep.unsupported(weights) is None
    assert "head size 24" in str(NativeStep.unsupported(random_decoder(Shape(head_dim=24))))
    assert "multiples of 16" in str(NativeStep.unsupported(random_decoder(Shape(hidden=72))))
