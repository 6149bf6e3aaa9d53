"""The adapters' delta in Triton, with the signature of the reference's :class:`LoraPlan`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.cuda import lora_kernels
from manylora.server.kernels.cuda.mixes import LoraTables, lora_tables, total_rank
from manylora.server.kernels.cuda.types import dot_type
from manylora.server.kernels.inputs import BaseProducts, Int32, LoraInputs, ModuleShape, page_length
from manylora.server.kernels.reference.lora import split_rows
from manylora.server.kernels.reference.vectors import NormChange, VectorPlan

TILE_ROWS = 16  # from this many rows of one mix on, they go through the tensor cores in tiles
RANKS = 16  # rank pages taken together; the least that tensor cores multiply
ROW_SLICE = 512  # input features of a slice; never a matter of the batch, or bits would depend on it
_TILE_SLICE = 1024
_TILE_DEPTH = 64
OUT = 256  # output features of a program


class TiledPages:
    """Adds what mixes have in modules that share an input to rows in tiles, by two launches."""

    def __init__(
        self,
        pool: torch.Tensor,
        tables: LoraTables,
        capacity: int,
        tiles: torch.Tensor,
        *,
        vectors: bool,
    ) -> None:
        """``capacity`` is the largest sum of ranks that a sequence's mix has in a module.

        ``tiles`` [n, 3] int32 lists (first row, last row + 1, sequence), of at most TILE_ROWS rows each.
        ``vectors``: gains and constants are added, too.
        """
        self._pool = pool
        self._tables = tables
        self._capacity = capacity
        self._tiles = tiles
        self._vectors = vectors

    def add(self, module: int, shapes: Sequence[ModuleShape], x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to ``y`` [T, out of all] in place, for ``x`` [T, in].

        ``shapes`` are those of at most three modules that follow each other from ``module`` on and take the
        same input; the outputs of the second are as wide as those of the third.
        """
        t, features, parts = self._tables, shapes[0].in_features, len(shapes)
        outs = [shape.out_features for shape in shapes]
        pages = [page_length(out) for out in outs]
        slices, dot = triton.cdiv(features, _TILE_SLICE), dot_type(self._pool.dtype)
        lines = len(self._tiles) * TILE_ROWS
        partial = x.new_empty(slices, lines, parts, self._capacity, dtype=torch.float32)
        lora_kernels.shrink_tiles[(len(self._tiles), slices, parts)](
            x, x.stride(0), features, self._pool, page_length(features), self._tiles,
            t.start, t.adapter, t.offset, t.rank, t.modules, module, partial, self._capacity,
            SLICE=_TILE_SLICE, RANKS=RANKS, ROWS=TILE_ROWS, DEPTH=_TILE_DEPTH, DOT=dot,
        )  # fmt: skip
        first, second, third = [*outs, 0, 0][:3]
        lora_kernels.expand_tiles[(len(self._tiles), sum(triton.cdiv(out, OUT) for out in outs))](
            partial, self._capacity, features, first, second, third,
            self._pool, page_length(features), pages[0], pages[-1], self._tiles,
            t.start, t.adapter, t.weight, t.offset, t.rank, t.gain, t.constant, t.modules, module,
            y, y.stride(0),
            SLICE=_TILE_SLICE, RANKS=RANKS, ROWS=TILE_ROWS, OUT=OUT, PARTS=parts, VECTORS=self._vectors,
            DOT=dot,
        )  # fmt: skip


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
        self._tiles = None if tiles is None else TiledPages(pool, tables, capacity, tiles, vectors=False)

    def add(self, module: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the delta of ``module`` for input ``x`` [T, in] to the base's ``y`` [T, out] in place."""
        if self._rows is not None:
            self._add_rows(module, self._rows, x, y)
        if self._tiles is not None:
            self._tiles.add(module, self._shapes[module : module + 1], x, y)

    def norm_change(self, module: int) -> NormChange | None:
        """Nothing: these adapters have no vectors."""
        del module
        return None

    def _add_rows(self, module: int, rows: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
        shape, t = self._shapes[module], self._tables
        a_page, b_page = page_length(shape.in_features), page_length(shape.out_features)
        slices = triton.cdiv(shape.in_features, ROW_SLICE)
        partial = x.new_empty(slices, len(rows), self._capacity, dtype=torch.float32)
        lora_kernels.shrink_rows[(len(rows), slices)](
            x, x.stride(0), shape.in_features, self._pool, a_page, rows,
            t.start, t.adapter, t.offset, t.rank, t.modules, module, partial, self._capacity,
            SLICE=ROW_SLICE, RANKS=RANKS,
        )  # fmt: skip
        lora_kernels.expand_rows[(len(rows), triton.cdiv(shape.out_features, OUT))](
            partial, self._capacity, shape.in_features, shape.out_features, self._pool, a_page, b_page, rows,
            t.start, t.adapter, t.weight, t.offset, t.rank, t.modules, module, y, y.stride(0),
            SLICE=ROW_SLICE, RANKS=RANKS, OUT=OUT,
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
        self._used = np.any([pages.rank for pages in inputs.adapters], axis=0).tolist()
        segments, loose = split_rows(inputs, rows, TILE_ROWS)

        self._pages = RankPages(
            pool,
            shapes,
            lora_tables(inputs, len(shapes), pool.device),
            total_rank(inputs),
            rows=sent(np.array(loose, np.int32), pool.device) if loose else None,
            tiles=sent(tiles_of(segments), pool.device) if segments else None,
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


def tiles_of(segments: Sequence[tuple[int, int, int]]) -> Int32:
    """Cut (first row, last row + 1, sequence) into pieces of at most as many rows as a program takes."""
    tiles = [
        (row, min(row + TILE_ROWS, stop), sequence)
        for start, stop, sequence in segments
        for row in range(start, stop, TILE_ROWS)
    ]
    return np.array(tiles, np.int32)
