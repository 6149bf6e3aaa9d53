"""GGUF's quantized blocks as weights, value for value what ``gguf.dequantize`` gives for them.

A row of a matrix is a row of blocks, each with its own scales in half precision. Every product of codes and
scales fits float32 exactly, so a value is rounded at most once, where a minimum is added or taken away.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BlockType:
    """One of GGML's quantized types."""

    weights: int  # of a block
    nbytes: int  # of a block
    values: Callable[[torch.Tensor], torch.Tensor]  # [n, nbytes] uint8 -> [n, weights] float32


@dataclass(frozen=True, eq=False)
class BlockCodes:
    """A matrix in blocks of one type."""

    kind: str  # of :data:`BLOCK_TYPES`
    blocks: torch.Tensor  # [out, bytes of a row] uint8

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What it takes memory for."""
        return (self.blocks,)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        kind = BLOCK_TYPES[self.kind]
        return self.blocks.shape[0], self.blocks.shape[1] // kind.nbytes * kind.weights

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The weights of the outputs ``start : stop``, [n, in] float32."""
        part = self.blocks[start:stop]
        return block_values(self.kind, part).view(len(part), -1)


def block_values(kind: str, blocks: torch.Tensor) -> torch.Tensor:
    """The values of the bytes ``blocks`` (uint8, any shape of whole blocks), flat in float32."""
    block = BLOCK_TYPES[kind]
    return block.values(blocks.reshape(-1, block.nbytes)).reshape(-1)


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


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    codes = _nibbles(blocks[:, 6:]) | (_bits(blocks[:, 2:6]) << 4)
    return _half(blocks, 0) * (codes.float() - 16)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    codes = _nibbles(blocks[:, 8:]) | (_bits(blocks[:, 4:8]) << 4)
    return _half(blocks, 0) * codes.float() + _half(blocks, 2)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8).float()


def _scales_and_minima(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum [n, 8, 1] of each 32 weights: 6 bits each, in the 12 bytes behind two halves."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([low & 63, (high & 0xF) | ((low >> 6) << 4)], dim=1)
    minima = torch.cat([middle & 63, (high >> 4) | ((middle >> 6) << 4)], dim=1)
    return (_half(blocks, 0) * scales.float())[..., None], (_half(blocks, 2) * minima.float())[..., None]


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, minima = _scales_and_minima(blocks)
    codes = _nibbles(blocks[:, 16:].view(-1, 4, 32)).view(-1, 8, 32)
    return (scales * codes.float() - minima).flatten(1)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, minima = _scales_and_minima(blocks)
    planes = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    fifth = (blocks[:, None, 16:48] >> planes) & 1
    codes = _nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 8, 32) | (fifth << 4)
    return (scales * codes.float() - minima).flatten(1)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    pairs = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=blocks.device)[:, None]
    low = _nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 2, 4, 32)
    high = (blocks[:, 128:192].view(-1, 2, 1, 32) >> pairs) & 3
    codes = (low | (high << 4)).view(-1, 16, 16).float() - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return (scales[..., None] * codes).flatten(1)


BLOCK_TYPES: Mapping[str, BlockType] = {
    "Q4_0": BlockType(32, 18, _q4_0),
    "Q4_1": BlockType(32, 20, _q4_1),
    "Q5_0": BlockType(32, 22, _q5_0),
    "Q5_1": BlockType(32, 24, _q5_1),
    "Q8_0": BlockType(32, 34, _q8_0),
    "Q4_K": BlockType(256, 144, _q4_k),
    "Q5_K": BlockType(256, 176, _q5_k),
    "Q6_K": BlockType(256, 210, _q6_k),
}
