"""What launches of the fused layers pass of mixes: tables, sums, and what stands for absent ones."""

from __future__ import annotations

import torch

from manylora.server.kernels.cuda.layers.row_mixes import RowMixes
from manylora.server.kernels.cuda.types import multiplies

# A x of every row, [slices, T, parts, capacity] float32; None: no kernel multiplies any pages.
Reduced = torch.Tensor | None


def in_kernels(mixes: RowMixes | None) -> bool:
    """Whether rank pages are multiplied in groups, inside the kernels around the products."""
    return mixes is not None and mixes.tiles is None


def partial_of(like: torch.Tensor, slices: int, parts: int, mixes: RowMixes | None) -> torch.Tensor:
    """Room for A x of the rows of ``like``, one sum a slice, part and rank."""
    assert mixes is not None
    return like.new_empty(slices, len(like), parts, mixes.capacity, dtype=torch.float32)


def tensor_cores(like: torch.Tensor) -> bool:
    """Whether groups go through tensor cores."""
    return multiplies(like.device, like.dtype)


def strided(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A matrix and the distance of its rows."""
    return x, x.stride(0)


def pool_of(mixes: RowMixes | None, absent: torch.Tensor) -> tuple[torch.Tensor]:
    """The pool that pages lie in."""
    return (absent if mixes is None else mixes.pool,)


def tables_of(mixes: RowMixes | None, absent: torch.Tensor) -> tuple[torch.Tensor | int, ...]:
    """What kernels read of mixes, from ``sequences`` to ``modules``; without mixes they read nothing."""
    if mixes is None:
        return *(absent,) * 9, 0
    t, groups = mixes.tables, mixes.sequences if mixes.groups is None else mixes.groups
    return (
        mixes.sequences,
        groups,
        t.start,
        t.adapter,
        t.weight,
        t.offset,
        t.rank,
        t.gain,
        t.constant,
        t.modules,
    )


def reduced_of(partial: Reduced, absent: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """The sums, their capacity and how many slices they come in."""
    if partial is None:
        return absent, 0, 0
    return partial, partial.shape[-1], partial.shape[0]
