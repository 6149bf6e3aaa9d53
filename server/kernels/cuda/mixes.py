"""The mixes of a step as kernels read them: which adapters each sequence has, and where their parts lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.inputs import PAGE_ALIGN, AdapterPages, Int32, Int64, LoraInputs

VECTORS = ("gain", "constant", "input_gain")  # those that kernels add


@dataclass(frozen=True)
class LoraTables:
    """The mixes of a step and the page tables of their adapters, on the device."""

    start: torch.Tensor  # [S + 1] int32: sequence s has the entries start[s] : start[s + 1]
    adapter: torch.Tensor  # [E] int32
    weight: torch.Tensor  # [E] float32
    offset: torch.Tensor  # [adapters, M] int64
    rank: torch.Tensor  # [adapters, M] int32
    gain: torch.Tensor  # [adapters, M] int32: pages of the pool, 0 for none; so are those that follow
    constant: torch.Tensor
    input_gain: torch.Tensor

    @property
    def modules(self) -> int:
        """M, the columns of the tables."""
        return self.rank.shape[1]


def lora_tables(inputs: LoraInputs, modules: int, device: torch.device) -> LoraTables:
    """Those of a step over so many modules."""
    arrays: list[np.ndarray[Any, Any]] = [
        inputs.start,
        inputs.adapter,
        inputs.weight,
        *page_tables(inputs.adapters, modules),
        *(vector_table(inputs.adapters, name, modules) for name in VECTORS),
    ]
    return LoraTables(*(sent(array, device) for array in arrays))


def page_tables(adapters: Sequence[AdapterPages], modules: int) -> tuple[Int64, Int32]:
    """The offsets and the ranks of ``adapters``, each [adapters, ``modules``]."""
    offset = np.stack([pages.offset[:modules] for pages in adapters])
    return offset, np.stack([pages.rank[:modules] for pages in adapters])


def vector_table(adapters: Sequence[AdapterPages], name: str, modules: int) -> Int32:
    """The pages [adapters, ``modules``] of one of VECTORS."""
    table = np.zeros((len(adapters), modules), np.int32)
    for row, pages in zip(table, adapters, strict=True):
        if pages.vectors is not None:
            row[:] = getattr(pages.vectors, name)[:modules] // PAGE_ALIGN
    return table


def total_rank(inputs: LoraInputs) -> int:
    """A bound on the sum of the ranks that any sequence's mix has in one module."""
    widest = np.array([pages.rank.max() for pages in inputs.adapters])
    sums = np.concatenate([[0], np.cumsum(widest[inputs.adapter])])[inputs.start]
    return int(np.diff(sums).max())


def no_tables(modules: int, device: torch.device) -> LoraTables:
    """Those of a step without mixes, with the types and widths that others have; nobody reads them."""

    def table(dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(1, modules, dtype=dtype, device=device)

    return LoraTables(
        start=torch.zeros(2, dtype=torch.int32, device=device),
        adapter=torch.zeros(1, dtype=torch.int32, device=device),
        weight=torch.zeros(1, dtype=torch.float32, device=device),
        offset=table(torch.int64),
        rank=table(torch.int32),
        **{name: table(torch.int32) for name in VECTORS},
    )
