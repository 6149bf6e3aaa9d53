"""BOFT with several factors, which PEFT trains on GPUs only: its own permutations, without its kernel."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from peft.tuners.boft.layer import Linear
from torch import nn

from manylora.adapters.format.kinds.orthogonal.boft import butterfly_order, rotated


@pytest.mark.parametrize(("width", "size", "factors"), [(32, 4, 2), (64, 4, 3), (64, 8, 3), (96, 2, 5)])
def test_the_product_of_the_factors(width: int, size: int, factors: int) -> None:
    torch.manual_seed(width + factors)
    stored, weight = 0.3 * torch.randn(factors, width // size, size, size), torch.randn(10, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no GPU
        layer = Linear(nn.Linear(width, 10), "default", peft.BOFTConfig(boft_block_size=size))
    rotation = torch.eye(width)
    for index in range(factors):
        blocks = torch.block_diag(*layer.cayley_batch(stored[index]))
        order = layer.block_butterfly_perm(width, (width // size) >> index, size // 2, factors - 1)
        assert torch.equal(order, butterfly_order(width, (width // size) >> index, size // 2))
        place = layer.perm2mat(order)
        rotation = place @ blocks @ place.T @ rotation
    assert torch.allclose(rotated(weight, stored), weight @ rotation.T, atol=1e-5)
