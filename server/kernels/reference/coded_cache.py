"""Keys and values in 8 bits: a code for each element, and a scale for each position and head.

A scale is that of one vector, so it is written once, with the vector, and depends on nothing else: not on
the chunk a position was computed in, nor on who had the block before.
"""

from __future__ import annotations

import torch

from manylora.server.kernels.buffers import zeros
from manylora.server.kernels.inputs import BLOCK_SIZE
from manylora.server.kernels.reference.attention import gather_blocks

SCALE_BYTES = 2  # of bf16
LARGEST = 127


class CodedKV:
    """K and V of one layer: codes ``keys`` and ``values`` [blocks * BLOCK_SIZE, nkv, hd] with their scales.

    An element is its code times the scale, rounded to the dtype of what was written.
    """

    def __init__(self, num_blocks: int, n_kv_heads: int, head_dim: int, like: torch.Tensor) -> None:
        shape = num_blocks * BLOCK_SIZE, n_kv_heads, head_dim
        self.keys, self.values = (zeros(shape, torch.int8, like.device) for _ in range(2))
        self._key_scales, self._value_scales = (
            zeros((*shape[:2], 1), torch.bfloat16, like.device) for _ in range(2)
        )
        self._dtype = like.dtype

    def write(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store ``keys`` and ``values`` [T, nkv, hd] at ``slots`` [T]."""
        self.keys[slots], self._key_scales[slots] = encode(keys)
        self.values[slots], self._value_scales[slots] = encode(values)

    def gather(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The K and V of ``blocks`` [S, B], each [S, B * BLOCK_SIZE, nkv, hd]."""
        return (
            self._decoded(self.keys, self._key_scales, blocks),
            self._decoded(self.values, self._value_scales, blocks),
        )

    def _decoded(self, codes: torch.Tensor, scales: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        return decode(gather_blocks(codes, blocks), gather_blocks(scales, blocks)).to(self._dtype)


def encode(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes int8 [..., d] and scales bf16 [..., 1] of ``vectors`` [..., d]: the largest gets code 127."""
    wide = vectors.float()
    scales = (wide.abs().amax(-1, keepdim=True) / LARGEST).bfloat16()
    inverse = torch.where(scales > 0, 1 / scales.float(), 0.0)
    return (wide * inverse).round().clamp(-LARGEST, LARGEST).to(torch.int8), scales


def decode(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The vectors of ``codes``, float32: exact, since a product has no more than 15 bits."""
    return codes.float() * scales.float()
