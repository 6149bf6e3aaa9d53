"""GGUF's quantized blocks as codes, which stand for what ``gguf.dequantize`` gives, value for value.

A row of a matrix is a row of blocks, each with its own scales in half precision; K-quants have scales of
parts of a block beside, in 6 or 8 bits. Every product of a code and its scales fits float32 exactly, so a
value is rounded once at most, where a minimum is taken away.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from manylora.server.kernels.codes import PLACES, Codes, Kind

_Parts = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor | None
]  # codes [n, weights], scales and offsets [n, groups]


@dataclass(frozen=True)
class BlockType:
    """One of GGML's quantized types."""

    weights: int  # of a block
    nbytes: int  # of a block
    group: int  # weights that share a scale
    kind: Kind
    read: Callable[[torch.Tensor], _Parts]  # of blocks [n, nbytes] uint8
    table: torch.Tensor | None = None


def block_codes(name: str, blocks: torch.Tensor) -> Codes:
    """The codes of a matrix of blocks [out, bytes of a row] uint8 of the type ``name``."""
    block = BLOCK_TYPES[name]
    codes, scales, offsets = block.read(blocks.reshape(-1, block.nbytes))
    elements = codes.reshape(len(blocks), -1)
    packed = elements if elements.dtype == torch.int8 else (elements[:, 0::2] << 4) | elements[:, 1::2]
    return Codes(
        block.kind,
        packed.contiguous(),
        scales.reshape(len(blocks), -1),
        block.group,
        table=None if block.table is None else block.table.to(blocks.device),
        factor=1.0 if block.kind is Kind.BYTES else 0.0,
        offsets=None if offsets is None else offsets.reshape(len(blocks), -1),
    )


def _half(blocks: torch.Tensor, place: int) -> torch.Tensor:
    """The half-precision number at byte ``place`` of each block: [n, 1] float32."""
    return blocks[:, place : place + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Codes [n, 2 w] of bytes [n, w]: the low halves of all, then the high ones."""
    return torch.cat([packed & 0xF, packed >> 4], dim=-1)


def _bits(packed: torch.Tensor) -> torch.Tensor:
    """The bits [n, 32] of four bytes [n, 4], the lowest of the first byte first."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> shifts) & 1).flatten(1)


def _q4_0(blocks: torch.Tensor) -> _Parts:
    return _nibbles(blocks[:, 2:]), _half(blocks, 0), None


def _q4_1(blocks: torch.Tensor) -> _Parts:
    return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: torch.Tensor) -> _Parts:
    codes = _nibbles(blocks[:, 6:]) | (_bits(blocks[:, 2:6]) << 4)
    return codes.to(torch.int8) - 16, _half(blocks, 0), None


def _q5_1(blocks: torch.Tensor) -> _Parts:
    codes = _nibbles(blocks[:, 8:]) | (_bits(blocks[:, 4:8]) << 4)
    return codes.to(torch.int8), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: torch.Tensor) -> _Parts:
    return blocks[:, 2:].view(torch.int8), _half(blocks, 0), None


def _scales_and_offsets(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset [n, 8] of each 32 weights: 6 bits each, in the 12 bytes behind two halves."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([low & 63, (high & 0xF) | ((low >> 6) << 4)], dim=1)
    minima = torch.cat([middle & 63, (high >> 4) | ((middle >> 6) << 4)], dim=1)
    return _half(blocks, 0) * scales.float(), -(_half(blocks, 2) * minima.float())


def _q4_k(blocks: torch.Tensor) -> _Parts:
    codes = _nibbles(blocks[:, 16:].view(-1, 4, 32)).flatten(1)
    return codes, *_scales_and_offsets(blocks)


def _q5_k(blocks: torch.Tensor) -> _Parts:
    planes = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    fifth = (blocks[:, None, 16:48] >> planes) & 1
    codes = _nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 8, 32) | (fifth << 4)
    return codes.flatten(1).to(torch.int8), *_scales_and_offsets(blocks)


def _q6_k(blocks: torch.Tensor) -> _Parts:
    pairs = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device)[:, None]
    low = _nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 2, 4, 32)
    high = (blocks[:, 128:192].view(-1, 2, 1, 32) >> pairs) & 3
    codes = (low | (high << 4)).flatten(1).to(torch.int8) - 32
    return codes, _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float(), None


BLOCK_TYPES: Mapping[str, BlockType] = {
    "Q4_0": BlockType(32, 18, 32, Kind.NIBBLES, _q4_0, PLACES - 8),
    "Q4_1": BlockType(32, 20, 32, Kind.ADDED, _q4_1, PLACES),
    "Q5_0": BlockType(32, 22, 32, Kind.BYTES, _q5_0),
    "Q5_1": BlockType(32, 24, 32, Kind.ADDED_BYTES, _q5_1),
    "Q8_0": BlockType(32, 34, 32, Kind.BYTES, _q8_0),
    "Q4_K": BlockType(256, 144, 32, Kind.ADDED, _q4_k, PLACES),
    "Q5_K": BlockType(256, 176, 32, Kind.ADDED_BYTES, _q5_k),
    "Q6_K": BlockType(256, 210, 16, Kind.BYTES, _q6_k),
}
