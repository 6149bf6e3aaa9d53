"""Products with matrices in few bits in Triton against those with the weights that the codes stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from manylora.server.kernels.codes import PLACES, WIDE, Codes, Kind
from manylora.server.kernels.matrices import QuantizedMatrix
from manylora.server.kernels.reference.quantized import CodedLinear, Quantized
from tests.support.coded import coded, random_codes
from tests.support.kernel_cases import Batcher, Pages, Shape, in_float32, on, random_decoder

pytest.importorskip("triton", reason="Triton is for Linux on x86-64")

from manylora.server.kernels.cuda.backend import TritonStep
from manylora.server.kernels.cuda.coded.products import KINDS, CodedProduct, coded_product
from manylora.server.kernels.reference.step import ReferenceStep

pytestmark = pytest.mark.slow

MORE = ((40, 256, 128), (70, 192, 32), (33, 100, 100), (16, 90, 64))


def moved(codes: Codes, device: torch.device) -> Codes:
    def there(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(device)

    tensors = {
        name: there(getattr(codes, name)) for name in ("packed", "scales", "table", "offsets", "order")
    }
    return replace(codes, **tensors)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("outputs", "inputs", "group"),
    [(35, 192, 64), *(pytest.param(*sizes, marks=pytest.mark.sweep) for sizes in MORE)],
)
def test_every_kind(device: torch.device, kind: Kind, outputs: int, inputs: int, group: int) -> None:
    """Groups that tiles lie in and not, last ones that are shorter, and a single one; one row and several."""
    codes = random_codes(kind, outputs, inputs, group)
    bias = torch.randn(outputs)
    product = CodedProduct(moved(codes, device), bias.to(device))
    for rows in (1, 19):
        x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
        expected = F.linear(x, codes.weight(torch.float32), bias)
        result = product(x.to(device)).cpu()
        torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", [Kind.SHIFTED, Kind.ADDED_BYTES])
def test_groups_in_any_order_and_codes_that_are_numbers(device: torch.device, kind: Kind) -> None:
    codes = random_codes(kind, 40, 192, 64)
    order = torch.randperm(192, generator=torch.Generator().manual_seed(1)) // 64
    codes = replace(codes, order=order, table=None if kind in WIDE else PLACES)
    x = torch.randn(5, 192)
    result = CodedProduct(moved(codes, device), None)(x.to(device)).cpu()
    torch.testing.assert_close(result, F.linear(x, codes.weight(torch.float32)), atol=1e-3, rtol=1e-4)


def test_rows_of_something_wider_and_in_bf16(device: torch.device) -> None:
    codes = random_codes(Kind.NIBBLES, 40, 128, 64)
    x = torch.randn(3, 200).bfloat16()[:, 10:138]
    result = CodedProduct(moved(codes, device), None)(x.to(device)).cpu()
    exact = F.linear(x.float(), codes.weight(torch.bfloat16).float())
    assert result.dtype == torch.bfloat16
    assert (
        result.float() - exact
    ).norm() / exact.norm() < 0.02  # the interpreter rounds weights towards zero


def test_few_rows_are_multiplied_from_their_codes_and_many_by_the_weight(device: torch.device) -> None:
    codes = random_codes(Kind.NIBBLES, 24, 64, 32)
    calls: list[int] = []

    class Noted(CodedProduct):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return super().__call__(x)

    here = moved(codes, device)
    layer = CodedLinear(here, None, torch.float32, product=Noted(here, None))
    for shape in ((2, 64), (1, 3, 64), (128, 64), (129, 64), (0, 64)):
        x = torch.randn(*shape, device=device)
        torch.testing.assert_close(layer(x), F.linear(x, here.weight(torch.float32)), atol=1e-3, rtol=1e-4)
    layer(torch.randn(2, 64, device=device).bfloat16())  # not what its weight is rounded to
    assert calls == [2, 3, 128]
    assert coded_product(random_codes(Kind.PLAIN, 4, 64, 64), None) is None


def test_a_decoder_in_four_bits(device: torch.device) -> None:
    """Its steps are those of the decoder in PyTorch; nothing in them waits, so they can be captured."""
    dense = in_float32(random_decoder(Shape(hidden=64, intermediate=96, heads=2, kv_heads=1, bias=True)))
    weights = coded(dense, Kind.NIBBLES, 32)
    assert not weights.waits
    pages = Pages(dense)
    pool = pages.pool.float()
    reference = ReferenceStep(weights, pool, 16)
    fast = replace(
        weights, layers=tuple(replace(layer, **_with_products(layer, device)) for layer in weights.layers)
    )
    triton = TritonStep(on(device, fast), pool.to(device), 16)
    batcher = Batcher(16, dense.embedding.shape[0], first=1)
    sequences = [batcher.sequence(20, mix) for mix in ((), ((pages.random(3, 1), 1.0),))]
    for counts in ((18, 5), (1, 1)):
        inputs = Batcher.step(list(zip(sequences, counts, strict=True)))
        torch.testing.assert_close(triton.step(inputs).cpu(), reference.step(inputs), atol=2e-3, rtol=2e-3)
    # More rows are unpacked for, in memory that a graph would keep: they are launched.
    assert triton.chunk_steps is not None
    assert [bucket.rows for bucket in triton.chunk_steps.buffers] == [32]
    assert triton.chunk_steps.step(Batcher.step([(batcher.sequence(129), 129)])) is None


def _with_products(layer: object, device: torch.device) -> dict[str, Any]:
    def fast(part: Quantized) -> Quantized:
        codes = moved(part.module.codes, device)
        bias = None if part.bias is None else part.bias.to(device)
        return Quantized(CodedLinear(codes, bias, torch.float32, product=CodedProduct(codes, bias)))

    return {
        name: QuantizedMatrix(tuple(fast(part) for part in getattr(layer, name).parts))
        for name in ("qkv", "o", "gate_up", "down")
    }
