"""Codes of GGUF, GPTQ and AWQ stand for the values that the formats' own tools give them, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from manylora.server.kernels.reference.coded.blocks import BLOCK_TYPES, BlockCodes
from manylora.server.kernels.reference.coded.groups import GroupCodes, from_awq, from_gptq
from manylora.server.kernels.reference.coded.linear import CodedLinear, PlainCodes
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
    codes = BlockCodes(kind, torch.from_numpy(raw))
    assert codes.shape == wanted.shape
    for start, stop in ((0, 70), (3, 4), (33, 70)):
        found = codes.rows(start, stop).numpy()
        assert np.array_equal(found, wanted[start:stop], equal_nan=True)


@pytest.mark.parametrize("how", GROUPINGS, ids=str)
def test_groups_are_what_was_packed(how: Grouping) -> None:
    weight = np.random.default_rng(2).standard_normal((72, 96)).astype(np.float32)
    parts = quantized(weight, how, np.random.default_rng(3))
    codes = group_codes(packed(parts, how), how)
    wanted = torch.from_numpy(parts.weight())
    assert codes.shape == (72, 96)
    assert torch.equal(codes.rows(0, 72), wanted)
    assert torch.equal(codes.rows(5, 40), wanted[5:40])
    assert codes.codes.nbytes == 72 * 96 // 2


def group_codes(tensors: dict[str, torch.Tensor], how: Grouping) -> GroupCodes:
    if how.method == "awq":
        return from_awq(**tensors)
    group = tensors.pop("g_idx") if how.act_order else None
    tensors.pop("g_idx", None)
    return from_gptq(**tensors, group=group, stored_less=2 - how.version)


def test_a_layer_multiplies_by_each_weight_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manylora.server.kernels.reference.coded.linear._CHUNK", 7 * 64)
    torch.manual_seed(0)
    weight, bias, x = torch.randn(40, 64), torch.randn(40).bfloat16(), torch.randn(2, 3, 64).bfloat16()
    raw = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    values = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType.Q8_0))
    layer = CodedLinear(BlockCodes("Q8_0", torch.from_numpy(raw)), bias)
    assert torch.equal(layer.dequantized(), values)
    assert torch.equal(layer.dequantized(torch.bfloat16), values.bfloat16())
    wanted = torch.nn.functional.linear(x.float(), values.bfloat16().float(), bias.float())
    torch.testing.assert_close(layer(x).float(), wanted, rtol=2**-8, atol=1e-3)
    assert sum(tensor.nbytes for tensor in layer.tensors) == 40 * 64 // 32 * 34 + bias.nbytes
    plain = CodedLinear(PlainCodes(values), None)
    assert torch.equal(plain.dequantized(), values)
    torch.testing.assert_close(plain(x.float()), torch.nn.functional.linear(x.float(), values))
