"""Large buffers on huge pages: streaming a model's weights touches too many small pages for the TLB."""

from __future__ import annotations

import mmap

import torch

_HUGE = 2 << 20
_LINE = 64


class Arena:
    """Hands out uninitialized pieces of one mapping, each aligned to a cache line."""

    def __init__(self, size: int) -> None:
        """Reserve ``size`` bytes; pages take memory when they are written."""
        self._map = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        memory = torch.frombuffer(self._map, dtype=torch.uint8)
        self._bytes = memory[-memory.data_ptr() % _HUGE :][:size]
        self._used = 0

    def take(self, elements: int, dtype: torch.dtype) -> torch.Tensor:
        """A flat tensor of ``elements``."""
        start = self._used
        self._used += -(-elements * dtype.itemsize // _LINE) * _LINE
        assert self._used <= len(self._bytes), "the arena was sized too small"
        return self._bytes[start : start + elements * dtype.itemsize].view(dtype)
