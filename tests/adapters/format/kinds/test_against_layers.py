"""Every kind with options drawn at random: a layer's output equals PEFT's."""

from __future__ import annotations

import random

import pytest
import torch

from manylora.adapters.format.kinds.matrices import MATRIX_KINDS
from manylora.adapters.merge.weights import merged_bias, merged_weight
from tests.support.peft_layers import KINDS, random_config, trained_layer

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of PEFT's FRoD
SHAPES = ((48, 32), (32, 48), (48, 48))


def test_options_are_drawn_for_every_kind() -> None:
    assert set(KINDS) == {kind.peft_type for kind in MATRIX_KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [8, pytest.param(120, marks=pytest.mark.slow)])
def test_a_layer_equals_peft(kind: str, count: int) -> None:
    for seed in range(count):
        rng = random.Random(seed)
        config = random_config(kind, rng)
        layer = trained_layer(config, *rng.choice(SHAPES), bias=rng.random() < 0.6, seed=seed)
        found = layer.output(layer.delta())
        largest = max(float(layer.y.abs().max()), float(layer.base(layer.x).detach().abs().max()))
        assert float((found - layer.y).abs().max()) < 5e-6 * largest, (seed, layer.config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_layer_equals_peft(kind: str) -> None:
    """One copy with weight and bias replaced; at half the weight half of the change."""
    rng = random.Random(7)
    layer = trained_layer(random_config(kind, rng), *rng.choice(SHAPES), bias=True, seed=7)
    delta, base = layer.delta(), layer.base
    for weight in (1.0, 0.5):
        merged = merged_weight(base.weight.detach(), [(delta, weight)])
        bias = merged_bias(base.bias.detach(), [(delta, weight)], base.weight.detach())
        before = base(layer.x).detach()
        expected = before + weight * (layer.y - before)
        found = torch.nn.functional.linear(layer.x, merged, bias)
        assert float((found - expected).abs().max() / expected.abs().max()) < 5e-6
