"""Stacked projections: the weights are in memory once, whatever is made of the model, and it still runs."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from manylora.server.kernels.buffers import total_bytes
from manylora.server.kernels.matrices import dense
from manylora.server.model.decoders.fused import FusedDecoder
from manylora.server.model.decoders.stacking import stack
from manylora.server.model.loading.loader import load_model


def storages(tensors: list[torch.Tensor]) -> int:
    """Bytes of the memory that tensors lie in, each counted once."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


def test_the_layers_become_parts_of_the_stack() -> None:
    linears = [nn.Linear(8, n, bias=False) for n in (6, 2, 4)]
    weights = [linear.weight.detach().clone() for linear in linears]
    x = torch.randn(3, 8)
    expected = [linear(x).detach() for linear in linears]
    gone = [weakref.ref(linear.weight) for linear in linears]
    whole = stack(linears)
    gc.collect()
    assert torch.equal(whole, torch.cat(weights))
    assert all(torch.equal(linear(x), y) for linear, y in zip(linears, expected, strict=True))
    assert storages([whole, *(linear.weight for linear in linears)]) == whole.nbytes
    assert all(ref() is None for ref in gone), "what they held before is free"
    again = stack(linears)
    assert again.data_ptr() == whole.data_ptr(), "a second decoder copies nothing"
    assert torch.equal(again, whole)


def test_parts_that_only_look_like_a_stack() -> None:
    base = torch.arange(48.0).view(6, 8)
    swapped = [nn.Linear(8, 3, bias=False) for _ in range(2)]
    for linear, part in zip(swapped, (base[3:], base[:3]), strict=True):
        linear.weight = nn.Parameter(part)
    assert torch.equal(stack(swapped), torch.cat([base[3:], base[:3]]))
    (single,) = [nn.Linear(8, 3)]
    assert stack([single]).data_ptr() == single.weight.data_ptr()


@pytest.mark.parametrize("kernels", ["auto", "pytorch"])
def test_a_decoder_takes_no_second_copy(tiny_llama: Path, kernels: str) -> None:
    """It was 1.57 times the model on a GPU, of which 8B in 16 bits then did not fit 24 GB."""
    loaded = load_model(tiny_llama, dtype="fp32", device="cpu", max_model_len=None)
    before = storages(list(loaded.hf.parameters()))
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        expected = loaded.hf(input_ids=ids).logits
    decoder = FusedDecoder(loaded.hf, 64, kernels)
    matrices = [
        matrix
        for layer in decoder.weights.layers
        for name in layer.matrices
        if isinstance(matrix := getattr(layer, name), torch.Tensor)
    ]
    assert total_bytes(matrices) > 0.5 * before
    gc.collect()
    assert storages([*loaded.hf.parameters(), *matrices]) <= 1.001 * before
    with torch.inference_mode():
        assert torch.equal(loaded.hf(input_ids=ids).logits, expected)
    other = FusedDecoder(loaded.hf, 64, "pytorch")
    again = [dense(layer.qkv) for layer in other.weights.layers]
    assert storages([*loaded.hf.parameters(), *again]) <= 1.001 * before
