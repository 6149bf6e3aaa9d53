"""Allocation of large buffers: those that are mostly never touched, and those that are written at once."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Sequence

import numpy as np
import torch

_LINE = 64  # bytes


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros. On the CPU its pages take memory only once they are written.

    torch writes the zeros it allocates; numpy asks the system for pages that are zero already. It starts on
    a cache line: numpy's own allocations don't, and then every vector load would touch two lines.
    """
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = torch.from_numpy(np.zeros(size + _LINE, np.uint8))
    start = -memory.data_ptr() % _LINE
    return memory[start : start + size].view(dtype).view(*shape)


def mapped(size: int) -> torch.Tensor:
    """``size`` bytes [size] uint8 in a mapping of their own, which goes with the last reference."""
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of ``tensors``, one that occurs twice counted once, those without memory not at all."""
    return sum({t.data_ptr(): t.nbytes for t in tensors if not t.is_meta}.values())
