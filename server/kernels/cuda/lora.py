"""The adapters' delta in Triton, with the signature of the reference's :class:`LoraPlan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton

from manylora.server.kernels.cuda import lora_kernels
from manylora.server.kernels.cuda.types import dot_type
from manylora.server.kernels.inputs import (
    AdapterPages,
    BaseProducts,
    Int32,
    Int64,
    LoraInputs,
    ModuleShape,
    page_length,
)
from manylora.server.kernels.reference.lora import split_rows
from manylora.server.kernels.reference.vectors import NormChange, VectorPlan

_TILE_ROWS = 16  # from this many rows of one mix on, they go through the tensor cores in tiles
_RANKS = 16  # rank pages taken together; the least that tensor cores multiply
_ROW_SLICE = 512  # input features of a slice; never a matter of the batch, or bits would depend on it
_TILE_SLICE = 1024
_TILE_DEPTH = 64
_OUT = 256  # output features of a program


@dataclass(frozen=True)
class LoraTables:
    """The mixes of a step and the page tables of their adapters, on the device."""

    start: torch.Tensor  # [S + 1] int32: sequence s has the entries start[s] : start[s + 1]
    adapter: torch.Tensor  # [E] int32
    weight: torch.Tensor  # [E] float32
    offset: torch.Tensor  # [adapters, M] int64
    rank: torch.Tensor  # [adapters, M] int32


class RankPages:
    """Adds ``Σ_k w_k · B_k (A_k x)`` to rows. What is launched depends on numbers of rows only."""

    plain = True

    def __init__(
        self,
        pool: torch.Tensor,
        shapes: Sequence[ModuleShape],
        tables: LoraTables,
        capacity: int,
        *,
        rows: torch.Tensor | None,
        tiles: torch.Tensor | None,
    ) -> None:
        """``capacity`` is the largest sum of ranks that a sequence's mix has in a module.

        ``rows`` [n, 2] int32 lists (row, sequence); ``tiles`` [n, 3] int32 (first row, last row + 1,
        sequence), of at most :func:`tiles_of`'s number of rows each.
        """
        self._pool = pool
        self._shapes = shapes
        self._tables = tables
        self._capacity = capacity
        self._rows = rows
        self._tiles = tiles

    def add(self, module: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the delta of ``module`` for input ``x`` [T, in] to the base's ``y`` [T, out] in place."""
        if self._rows is not None:
            self._add_rows(module, self._rows, x, y)
        if self._tiles is not None:
            self._add_tiles(module, self._tiles, x, y)

    def norm_change(self, module: int) -> NormChange | None:
        """Nothing: these adapters have no vectors."""
        del module
        return None

    def _add_rows(self, module: int, rows: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
        shape, t = self._shapes[module], self._tables
        a_page, b_page = page_length(shape.in_features), page_length(shape.out_features)
        slices = triton.cdiv(shape.in_features, _ROW_SLICE)
        modules = t.rank.shape[1]
        partial = x.new_empty(slices, len(rows), self._capacity, dtype=torch.float32)
        lora_kernels.shrink_rows[(len(rows), slices)](
            x, x.stride(0), shape.in_features, self._pool, a_page, rows,
            t.start, t.adapter, t.offset, t.rank, modules, module, partial, self._capacity,
            SLICE=_ROW_SLICE, RANKS=_RANKS,
        )  # fmt: skip
        lora_kernels.expand_rows[(len(rows), triton.cdiv(shape.out_features, _OUT))](
            partial, self._capacity, shape.in_features, shape.out_features, self._pool, a_page, b_page, rows,
            t.start, t.adapter, t.weight, t.offset, t.rank, modules, module, y, y.stride(0),
            SLICE=_ROW_SLICE, RANKS=_RANKS, OUT=_OUT,
        )  # fmt: skip

    def _add_tiles(self, module: int, tiles: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
        shape, t = self._shapes[module], self._tables
        a_page, b_page = page_length(shape.in_features), page_length(shape.out_features)
        slices = triton.cdiv(shape.in_features, _TILE_SLICE)
        modules, dot = t.rank.shape[1], dot_type(self._pool.dtype)
        partial = x.new_empty(slices, len(tiles) * _TILE_ROWS, self._capacity, dtype=torch.float32)
        lora_kernels.shrink_tiles[(len(tiles), slices)](
            x, x.stride(0), shape.in_features, self._pool, a_page, tiles,
            t.start, t.adapter, t.offset, t.rank, modules, module, partial, self._capacity,
            SLICE=_TILE_SLICE, RANKS=_RANKS, ROWS=_TILE_ROWS, DEPTH=_TILE_DEPTH, DOT=dot,
        )  # fmt: skip
        lora_kernels.expand_tiles[(len(tiles), triton.cdiv(shape.out_features, _OUT))](
            partial, self._capacity, shape.in_features, shape.out_features, self._pool, a_page, b_page, tiles,
            t.start, t.adapter, t.weight, t.offset, t.rank, modules, module, y, y.stride(0),
            SLICE=_TILE_SLICE, RANKS=_RANKS, ROWS=_TILE_ROWS, OUT=_OUT, DOT=dot,
        )  # fmt: skip


class TritonLoraPlan:
    """The adapter work of one step: rank pages in Triton, vectors (gains, constants) in PyTorch."""

    def __init__(
        self,
        pool: torch.Tensor,
        shapes: Sequence[ModuleShape],
        inputs: LoraInputs,
        rows: Int32,
        base: BaseProducts,
    ) -> None:
        self.plain = all(pages.vectors is None for pages in inputs.adapters)
        self._vectors = None if self.plain else VectorPlan(pool, shapes, inputs, rows, base)
        offset, rank = page_tables(inputs.adapters, len(shapes))
        self._used = [bool(ranks.any()) for ranks in rank.T]
        segments, loose = split_rows(inputs, rows, _TILE_ROWS)

        def there(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(pool.device)

        self._pages = RankPages(
            pool,
            shapes,
            LoraTables(
                there(inputs.start), there(inputs.adapter), there(inputs.weight), there(offset), there(rank)
            ),
            total_rank(inputs),
            rows=there(np.array(loose, np.int32)) if loose else None,
            tiles=there(tiles_of(segments)) if segments else None,
        )

    def add(self, module: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the delta of ``module`` for input ``x`` [T, in] to the base's ``y`` [T, out] in place."""
        if self._vectors is not None:
            self._vectors.add(module, x, y)
        if self._used[module]:
            self._pages.add(module, x, y)

    def norm_change(self, module: int) -> NormChange | None:
        """What is added to the output of a norm; None if nothing is."""
        return None if self._vectors is None else self._vectors.norm_change(module)


def page_tables(adapters: Sequence[AdapterPages], modules: int) -> tuple[Int64, Int32]:
    """The offsets and the ranks of ``adapters``, each [adapters, ``modules``]."""
    offset = np.stack([pages.offset[:modules] for pages in adapters])
    return offset, np.stack([pages.rank[:modules] for pages in adapters])


def total_rank(inputs: LoraInputs) -> int:
    """A bound on the sum of the ranks that any sequence's mix has in one module."""
    widest = np.array([pages.rank.max() for pages in inputs.adapters])
    sums = np.concatenate([[0], np.cumsum(widest[inputs.adapter])])[inputs.start]
    return int(np.diff(sums).max())


def tiles_of(segments: Sequence[tuple[int, int, int]]) -> Int32:
    """Cut (first row, last row + 1, sequence) into pieces of at most as many rows as a program takes."""
    tiles = [
        (row, min(row + _TILE_ROWS, stop), sequence)
        for start, stop, sequence in segments
        for row in range(start, stop, _TILE_ROWS)
    ]
    return np.array(tiles, np.int32)
