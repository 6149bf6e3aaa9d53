"""Allocation of large buffers: those that are mostly never touched, and those that are written at once."""

from __future__ import annotations

import math
import mmap
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

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


class ReusedMemory:
    """Memory in mappings of their own; one whose last tensor is gone serves the next that asks.

    The system hands out a fresh mapping page by page, with a fault for each. For a file that it has in its
    cache that takes ten times as long as reading the file. Any thread may call.
    """

    def __init__(self, spare: int) -> None:
        """``spare``: how many mappings are kept for later."""
        self._spare: deque[mmap.mmap] = deque(maxlen=spare)

    def take(self, size: int) -> torch.Tensor:
        """``size`` bytes [size] uint8 of no particular content."""
        mapping = self._fitting(size)
        owner = np.frombuffer(mapping, np.uint8)
        # No lock: this runs whenever the garbage collector pleases, also within the lines of _fitting.
        weakref.finalize(owner, self._spare.append, mapping).atexit = False
        return torch.from_numpy(owner)[:size]

    def _fitting(self, size: int) -> mmap.mmap:
        """A spare mapping that is neither too small nor far too large, else a new one; others are dropped."""
        while self._spare:
            with suppress(IndexError):  # another thread took the last one
                mapping = self._spare.popleft()
                if size <= len(mapping) <= 2 * size + mmap.PAGESIZE:
                    return mapping
        return mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of ``tensors``, one that occurs twice counted once, those without memory not at all."""
    return sum({t.data_ptr(): t.nbytes for t in tensors if not t.is_meta}.values())


def sent(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """``array`` on ``device``, behind what that is doing, without waiting; on a CPU the same memory.

    From memory that is not pinned a GPU would copy only once all it has been given is done.
    """
    here = torch.from_numpy(array)
    if device.type == "cuda" and torch.cuda.is_available():
        return here.pin_memory().to(device, non_blocking=True)
    return here.to(device)
