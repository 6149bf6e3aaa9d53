"""A merged weight and bias compute what the adapter beside the layer computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.merge.verify import add_beside
from manylora.adapters.merge.weights import merged_bias, merged_weight

INPUTS, OUTPUTS = 24, 16


def lora(seed: int, rank: int = 3, **parts: Any) -> ModuleDelta:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, INPUTS, generator=generator)
    b = torch.randn(OUTPUTS, rank, generator=generator) * 0.2
    return ModuleDelta(a, b, 0.5 + seed, **parts)


def vector(size: int, seed: int) -> torch.Tensor:
    return 1 + 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


NOTHING = ModuleDelta(torch.empty(0, INPUTS), torch.empty(OUTPUTS, 0))
KINDS = {
    "lora": lora(1),
    "dora": lora(2, magnitude=vector(OUTPUTS, 3).abs()),
    "lora_bias": lora(3, b_bias=vector(OUTPUTS, 4)),
    "bias": lora(4, bias=vector(OUTPUTS, 5)),
    "ia3": replace(NOTHING, output_scale=vector(OUTPUTS, 6)),
    "ia3-feedforward": replace(NOTHING, input_scale=vector(INPUTS, 7)),
    "bias-only": replace(NOTHING, bias=vector(OUTPUTS, 8)),
}


@pytest.mark.parametrize("own_bias", [True, False])
@pytest.mark.parametrize("kinds", [*[(k,) for k in KINDS], tuple(KINDS)], ids="+".join)
def test_merged_is_unmerged(kinds: tuple[str, ...], own_bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, OUTPUTS, bias=own_bias).requires_grad_(False)
    x = torch.randn(7, INPUTS)
    parts = tuple(
        (KINDS[kind], weight)
        for kind, weight in zip(kinds, (1.0, -0.7, 0.4, 2.0, 0.3, 1.1, 0.9), strict=False)
    )
    expected = add_beside(parts, layer, (x,), layer(x))
    bias = merged_bias(layer.bias, parts)
    found = nn.functional.linear(x, merged_weight(layer.weight, parts), bias)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, layer(x), atol=1e-2)


def test_no_bias_out_of_nothing() -> None:
    assert merged_bias(None, [(KINDS["lora"], 1.0)]) is None


def test_the_base_is_left_alone() -> None:
    weight = torch.randn(OUTPUTS, INPUTS, dtype=torch.bfloat16)
    before = weight.clone()
    merged = merged_weight(weight, [(KINDS["dora"], 1.0)])
    assert merged.dtype == torch.float32
    assert torch.equal(weight, before)
    assert torch.equal(merged_weight(weight, []), weight.float())
