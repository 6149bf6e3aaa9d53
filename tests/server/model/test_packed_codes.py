"""Codes of GGUF, GPTQ and AWQ stand for the values that the formats' own tools give them, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from manylora.server.kernels.codes import Codes
from manylora.server.model.loading.packed.blocks import BLOCK_TYPES, block_codes
from manylora.server.model.loading.packed.words import from_awq, from_gptq
from tests.support.grouped_checkpoints import Grouping, packed, quantized

GROUPINGS = [
    Grouping("gptq"),
    Grouping("gptq", version=2),
    Grouping("gptq", group_size=-1),
    Grouping("gptq", act_order=True),
    Grouping("gptq", symmetric=True),
    Grouping("awq"),
    Grouping("awq", group_size=-1),
]


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_blocks_are_what_gguf_makes_of_them(kind: str) -> None:
    known = gguf.GGMLQuantizationType[kind]
    block = BLOCK_TYPES[kind]
    assert (block.weights, block.nbytes) == gguf.GGML_QUANT_SIZES[known]
    raw = np.random.default_rng(1).integers(0, 256, (70, 3 * block.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):  # any bytes at all: scales that are no numbers as well
        wanted = gguf.dequantize(raw, known)
    codes = block_codes(kind, torch.from_numpy(raw))
    assert codes.shape == wanted.shape
    assert np.array_equal(codes.weight(torch.float32).numpy(), wanted, equal_nan=True)
    rounded = torch.from_numpy(wanted).to(torch.bfloat16)
    assert torch.equal(codes.weight(torch.bfloat16).nan_to_num(), rounded.nan_to_num())


@pytest.mark.parametrize("how", GROUPINGS, ids=str)
def test_groups_are_what_was_packed(how: Grouping) -> None:
    weight = np.random.default_rng(2).standard_normal((72, 96)).astype(np.float32)
    parts = quantized(weight, how, np.random.default_rng(3))
    codes = word_codes(packed(parts, how), how)
    assert codes.shape == (72, 96)
    assert codes.packed.nbytes == 72 * 96 // 2
    exact = torch.from_numpy(parts.exact())
    for dtype in (torch.float16, torch.bfloat16, torch.float32):  # in float16 it is what the tools compute
        assert torch.equal(codes.weight(dtype), exact.to(dtype)), dtype


def word_codes(tensors: dict[str, torch.Tensor], how: Grouping) -> Codes:
    if how.method == "awq":
        return from_awq(**tensors)
    group = tensors.pop("g_idx") if how.act_order else None
    tensors.pop("g_idx", None)
    return from_gptq(**tensors, order=group, stored_less=2 - how.version)
