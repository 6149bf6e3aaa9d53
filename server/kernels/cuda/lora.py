"""The adapters' delta in Triton, with the signature of the reference's :class:`LoraPlan`.

Rows of one mix go through the tensor cores in tiles, a row that is alone as well: its bits are the same
beside any others.
"""

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

TILE_ROWS = 16  # rows of one mix that a program takes together, at most
GROUP_ROWS = lora_kernels.GROUP_ROWS.value  # rows that decode
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
    """Adds ``Σ_k w_k · B_k (A_k x)`` to rows. What is launched depends on the number of tiles only."""

    plain = True

    def __init__(
        self,
        pool: torch.Tensor,
        shapes: Sequence[ModuleShape],
        tables: LoraTables,
        capacity: int,
        tiles: torch.Tensor,
    ) -> None:
        """As :class:`TiledPages`, without vectors."""
        self._shapes = shapes
        self._tiles = TiledPages(pool, tables, capacity, tiles, vectors=False)

    def add(self, module: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the delta of ``module`` for input ``x`` [T, in] to the base's ``y`` [T, out] in place."""
        self._tiles.add(module, self._shapes[module : module + 1], x, y)

    def norm_change(self, module: int) -> NormChange | None:
        """Nothing: these adapters have no vectors."""
        del module
        return None


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
        segments, _ = split_rows(inputs, rows, 1)
        tables, tiles = lora_tables(inputs, len(shapes), pool.device), sent(tiles_of(segments), pool.device)
        self._pages = RankPages(pool, shapes, tables, total_rank(inputs), tiles)

    def add(self, module: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the delta of ``module`` for input ``x`` [T, in] to the base's ``y`` [T, out] in place."""
        if self._vectors is not None:
            self._vectors.add(module, x, y)
        if self._used[module]:
            self._pages.add(module, x, y)

    def norm_change(self, module: int) -> NormChange | None:
        """What is added to the output of a norm; None if nothing is."""
        return None if self._vectors is None else self._vectors.norm_change(module)


def tiles_of(segments: Sequence[tuple[int, int, int]], most: int = TILE_ROWS) -> Int32:
    """Cut (first row, last row + 1, sequence) into pieces [n, 3] of at most so many rows."""
    tiles = [
        (row, min(row + most, stop), sequence)
        for start, stop, sequence in segments
        for row in range(start, stop, most)
    ]
    return np.array(tiles, np.int32).reshape(-1, 3)


def groups_of(inputs: LoraInputs, rows: int) -> Int32:
    """The groups [rows, 3] of ``rows`` that decode, one of each sequence, as tiles of GROUP_ROWS.

    Rows without a mix, and those that fill up, are a group each; behind the last group there are empty ones.
    """
    count = len(inputs.start) - 1
    segments, _ = split_rows(inputs, np.arange(count + 1, dtype=np.int32), 1)
    tiles = tiles_of(segments, GROUP_ROWS)
    mixed = np.zeros(rows, np.bool_)
    mixed[:count] = np.diff(inputs.start) > 0
    alone = np.flatnonzero(~mixed)
    groups = np.zeros((rows, 3), np.int32)
    groups[: len(tiles)] = tiles
    groups[len(tiles) : len(tiles) + len(alone)] = np.stack([alone, alone + 1, alone], axis=1)
    return groups
