"""The pool of rank pages: one flat tensor in which every resident adapter has one run of elements."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adapters.artifact import LoraWeights
from adapters.base import TargetModule
from server.kernels.inputs import PAGE_ALIGN, AdapterPages, Int32, Int64, page_length
from server.kernels.memory import zeros


@dataclass(frozen=True, eq=False)
class PackedAdapter:
    """An adapter laid out as it will lie in the pool, offsets counted from its own start."""

    digest: str
    data: torch.Tensor  # flat, pool dtype, on the CPU
    offset: Int64  # [M]
    rank: Int32  # [M]
    activation: tuple[int, ...] | None = None  # the tokens that switch it on (aLoRA)


class PageSpace:
    """Which elements of the pool are taken. First fit over free runs, neighbours joined on release."""

    def __init__(self, start: int, end: int) -> None:
        self._free: list[tuple[int, int]] = [(start, end)]
        self._taken: dict[int, int] = {}
        self.capacity = end - start

    @property
    def used(self) -> int:
        """Elements taken."""
        return sum(self._taken.values())

    def reserve(self, size: int) -> int | None:
        """Start of a free run of ``size`` elements, now taken; None when no run is long enough."""
        for index, (start, end) in enumerate(self._free):
            if end - start >= size:
                self._free[index : index + 1] = [(start + size, end)] if end - start > size else []
                self._taken[start] = size
                return start
        return None

    def release(self, start: int) -> int:
        """Free the run that begins at ``start``; returns its size."""
        size = self._taken.pop(start)
        runs = sorted([*self._free, (start, start + size)])
        joined = runs[:1]
        for run in runs[1:]:
            if joined[-1][1] == run[0]:
                joined[-1] = (joined[-1][0], run[1])
            else:
                joined.append(run)
        self._free = joined
        return size

    def check(self) -> None:
        """Assert that free and taken runs tile the space exactly."""
        runs = sorted([*self._free, *((s, s + n) for s, n in self._taken.items())])
        assert sum(end - start for start, end in runs) == self.capacity
        assert all(a[1] == b[0] for a, b in itertools.pairwise(runs))


class PagePool:
    """The flat tensor behind all resident adapters, of at most ``capacity`` bytes.

    Its first page is zero and stays so: absent pages point there. Only elements of a reserved run
    that no sequence refers to are ever written, so writing needs no lock against a running step.
    """

    def __init__(
        self, modules: Sequence[TargetModule], capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.modules = tuple(modules)
        widest = max((max(m.in_features, m.out_features) for m in modules), default=PAGE_ALIGN)
        zero = page_length(widest)
        elements = max(capacity // dtype.itemsize, zero)
        self.data = zeros((elements,), dtype, device)
        self._space = PageSpace(zero, elements)

    @property
    def capacity_bytes(self) -> int:
        return self._space.capacity * self.data.element_size()

    @property
    def used_bytes(self) -> int:
        return self._space.used * self.data.element_size()

    def reserve(self, packed: PackedAdapter) -> AdapterPages | None:
        """Take room for ``packed``; None when there is no free run of its size."""
        start = self._space.reserve(packed.data.numel())
        if start is None:
            return None
        offset = np.where(packed.rank > 0, packed.offset + start, 0)
        return AdapterPages(packed.digest, offset, packed.rank, start, packed.activation)

    def write(self, pages: AdapterPages, packed: PackedAdapter) -> None:
        """Copy the pages in. Any thread may call this, once, before the pages are used."""
        self.data[pages.start : pages.start + packed.data.numel()].copy_(packed.data)

    def release(self, pages: AdapterPages) -> int:
        """Give the room back; returns the bytes freed."""
        return self._space.release(pages.start) * self.data.element_size()

    def packed_bytes(self, ranks: Mapping[str, int]) -> int:
        """Bytes an adapter with those ranks by module name takes."""
        elements = sum(
            ranks.get(m.name, 0) * (page_length(m.in_features) + page_length(m.out_features))
            for m in self.modules
        )
        return elements * self.data.element_size()

    def pack(
        self, digest: str, weights: Mapping[str, LoraWeights], activation: tuple[int, ...] | None = None
    ) -> PackedAdapter:
        """Lay an adapter out, its scaling folded into B in fp32 before the one rounding to the pool dtype."""
        size = self.packed_bytes({n: w.a.shape[0] for n, w in weights.items()}) // self.data.element_size()
        data = torch.zeros(size, dtype=self.data.dtype)
        offset = np.zeros(len(self.modules), np.int64)
        rank = np.zeros(len(self.modules), np.int32)
        position = 0
        for index, module in enumerate(self.modules):
            lora = weights.get(module.name)
            if lora is None:
                continue
            offset[index], rank[index] = position, lora.a.shape[0]
            position = _put(data, position, lora.a)
            position = _put(data, position, lora.b.T.float() * lora.scaling)
        return PackedAdapter(digest, data, offset, rank, activation)

    def check(self) -> None:
        """Assert the allocator's invariants."""
        self._space.check()


def _put(data: torch.Tensor, position: int, rows: torch.Tensor) -> int:
    """Write ``rows`` [r, n] as r padded pages at ``position``; returns where the next begins."""
    length = page_length(rows.shape[1])
    end = position + rows.shape[0] * length
    data[position:end].view(rows.shape[0], length)[:, : rows.shape[1]] = rows
    return end
