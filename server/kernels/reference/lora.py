"""The multi-adapter delta ``y += Σ_k w_k · B_k (A_k x)`` over rank pages, after that of the vectors.

A row's mix is a list of rank pages with coefficients. Rows that share a mix and come in numbers
(prefill chunks, popular adapters) are a plain matrix product; the rest gather their pages and go
through one batched product. Rows without a mix are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from manylora.server.kernels.inputs import (
    PAGE_ALIGN,
    AdapterPages,
    BaseProducts,
    Float32,
    Int32,
    Int64,
    LoraInputs,
    ModuleShape,
    StepInputs,
    page_length,
)
from manylora.server.kernels.reference.vectors import NormChange, VectorPlan

_SEGMENT_ROWS = 8  # from this many rows on, a matrix product beats gathering the pages row by row
_BUCKETS = (8, 16, 32, 64, 128, 256)  # rows are gathered by rank: small ones don't pay for large


@dataclass(frozen=True)
class _Segment:
    """Rows ``start : stop`` share the mix ``members``."""

    start: int
    stop: int
    members: tuple[tuple[AdapterPages, float], ...]


@dataclass(frozen=True)
class _Gathered:
    """Single rows, each with its own pages: for module m, row i runs pages ``a[m, i]`` and ``b[m, i]``.

    Page indices count units of PAGE_ALIGN elements; absent pages point at the pool's zero page.
    """

    rows: torch.Tensor | slice  # [R]; a slice where they are adjacent, which spares a gather and a scatter
    a: torch.Tensor  # [M, R, P]
    b: torch.Tensor  # [M, R, P]
    coefficient: torch.Tensor  # [M, R, P] float32, 0 for absent pages
    used: tuple[bool, ...]  # [M] whether any row has a page there


class LoraDelta(Protocol):
    """The adapter work of one step, prepared once and applied by every target module."""

    plain: bool  # no adapter of the step has vectors

    def add(self, module: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the delta of ``module`` for input ``x`` [T, in] to the base's ``y`` [T, out] in place."""

    def norm_change(self, module: int) -> NormChange | None:
        """What is added to the output of a norm; None if nothing is."""


class LoraPlan:
    """:class:`LoraDelta` in PyTorch.

    ``pool`` is the flat page pool; its first ``page_length(widest module)`` elements are zero.
    """

    def __init__(
        self,
        pool: torch.Tensor,
        shapes: Sequence[ModuleShape],
        inputs: LoraInputs,
        rows: Int32,
        base: BaseProducts,
    ) -> None:
        self._pool = pool
        self._shapes = shapes
        self.plain = all(pages.vectors is None for pages in inputs.adapters)
        self._vectors = None if self.plain else VectorPlan(pool, shapes, inputs, rows, base)
        segments, loose = split_rows(inputs, rows, _SEGMENT_ROWS)
        self._segments = [_Segment(first, stop, _members(inputs, s)) for first, stop, s in segments]
        linear = [shape for shape in shapes if shape.linear and not shape.expert]
        self._gathered = [_gather_plan(linear, inputs, g, pool.device) for g in _by_rank(inputs, loose)]

    def add(self, module: int, x: torch.Tensor, y: torch.Tensor) -> None:
        if self._vectors is not None:
            self._vectors.add(module, x, y)
        shape = self._shapes[module]
        for segment in self._segments:
            self._add_segment(module, shape, segment, x, y)
        for group in self._gathered:
            if group.used[module]:
                self._add_gathered(module, shape, group, x, y)

    def norm_change(self, module: int) -> NormChange | None:
        return None if self._vectors is None else self._vectors.norm_change(module)

    def _add_segment(
        self, module: int, shape: ModuleShape, segment: _Segment, x: torch.Tensor, y: torch.Tensor
    ) -> None:
        parts = [(self._pages(module, shape, p), w) for p, w in segment.members if p.rank[module]]
        if not parts:
            return
        a = torch.cat([a for (a, _), _ in parts]) if len(parts) > 1 else parts[0][0][0]
        b = torch.cat([b for (_, b), _ in parts]) if len(parts) > 1 else parts[0][0][1]
        reduced = x[segment.start : segment.stop] @ a.T
        if any(weight != 1.0 for _, weight in parts):
            weights = [torch.full((a.shape[0],), weight) for (a, _), weight in parts]
            reduced = (reduced.float() * torch.cat(weights).to(x.device)).to(x.dtype)
        y[segment.start : segment.stop] += reduced @ b

    def _pages(
        self, module: int, shape: ModuleShape, pages: AdapterPages
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of A [r, in] and B transposed [r, out]."""
        rank = int(pages.rank[module])
        offset = int(pages.offset[module]) + self._pool.storage_offset()
        a_len, b_len = page_length(shape.in_features), page_length(shape.out_features)
        a = self._pool.as_strided((rank, shape.in_features), (a_len, 1), offset)
        b = self._pool.as_strided((rank, shape.out_features), (b_len, 1), offset + rank * a_len)
        return a, b

    def _add_gathered(
        self, module: int, shape: ModuleShape, group: _Gathered, x: torch.Tensor, y: torch.Tensor
    ) -> None:
        a = self._select(group.a[module], shape.in_features)
        b = self._select(group.b[module], shape.out_features)
        reduced = torch.bmm(x[group.rows].unsqueeze(1), a.transpose(1, 2)).float()
        scaled = (reduced * group.coefficient[module].unsqueeze(1)).to(y.dtype)
        if isinstance(group.rows, slice):
            y[group.rows].unsqueeze(1).baddbmm_(scaled, b)
        else:
            y[group.rows] += torch.bmm(scaled, b).squeeze(1)

    def _select(self, index: torch.Tensor, features: int) -> torch.Tensor:
        """The pages at ``index`` [R, P] as [R, P, features]."""
        length = page_length(features)
        units = (self._pool.numel() - length) // PAGE_ALIGN + 1
        view = self._pool.as_strided((units, length), (PAGE_ALIGN, 1))
        return view.index_select(0, index.flatten()).view(*index.shape, length)[..., :features]


Planning = Callable[[torch.Tensor, Sequence[ModuleShape], LoraInputs, Int32, BaseProducts], LoraDelta]


class LoraPlanner:
    """Plans step after step. While the batch only decodes its plan stays the same, and is kept."""

    def __init__(
        self,
        pool: torch.Tensor,
        shapes: Sequence[ModuleShape],
        base: BaseProducts,
        make: Planning = LoraPlan,
    ) -> None:
        self._pool = pool
        self._shapes = shapes
        self._base = base
        self._make = make
        self._inputs: LoraInputs | None = None
        self._rows: Int32 | None = None
        self._plan: LoraDelta | None = None

    def plan(self, inputs: StepInputs) -> LoraDelta | None:
        """The adapter work of a step, or None when every sequence runs the base."""
        if inputs.lora is None:
            return None
        if self._plan is None or not self._is_last(inputs.lora, inputs.query_start):
            self._plan = self._make(self._pool, self._shapes, inputs.lora, inputs.query_start, self._base)
            self._inputs, self._rows = inputs.lora, inputs.query_start
        return self._plan

    def _is_last(self, inputs: LoraInputs, rows: Int32) -> bool:
        assert self._inputs is not None
        assert self._rows is not None
        return same_mixes(self._inputs, inputs) and np.array_equal(self._rows, rows)


def same_mixes(one: LoraInputs, other: LoraInputs) -> bool:
    """Whether the sequences of two steps run with the same adapters in the same places."""
    return (
        len(one.adapters) == len(other.adapters)
        and all(a is b for a, b in zip(one.adapters, other.adapters, strict=True))
        and np.array_equal(one.start, other.start)
        and np.array_equal(one.adapter, other.adapter)
        and np.array_equal(one.weight, other.weight)
    )


def split_rows(
    inputs: LoraInputs, query_start: Int32, least: int
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """Join adjacent sequences of equal mixes; rows without a mix are left out.

    Returns (first row, last row + 1, a sequence) of each run of at least ``least`` rows, and (row, sequence)
    of the loose ones.
    """
    segments: list[tuple[int, int, int]] = []
    loose: list[tuple[int, int]] = []
    firsts = np.flatnonzero(_differs(inputs)).tolist()
    for sequence, behind in zip(firsts, [*firsts[1:], len(inputs.start) - 1], strict=True):
        if inputs.start[sequence] < inputs.start[sequence + 1]:
            start, stop = int(query_start[sequence]), int(query_start[behind])
            if stop - start >= least:
                segments.append((start, stop, sequence))
            else:
                loose += [(row, sequence) for row in range(start, stop)]
    return segments, loose


def _differs(inputs: LoraInputs) -> npt.NDArray[np.bool_]:
    """[S] whether the mix of a sequence is not that of the one before; the first has none before it."""
    counts = np.diff(inputs.start)
    differs = np.concatenate([[True], counts[1:] != counts[:-1]])[: len(counts)]
    owner = np.repeat(np.arange(len(counts)), counts)
    # Mixes of as many members lie one behind the other; the others are told apart already.
    before = np.arange(len(owner)) - counts[owner]
    other = (inputs.adapter != inputs.adapter[before]) | (inputs.weight != inputs.weight[before])
    differs[owner[other]] = True
    return differs


def _members(inputs: LoraInputs, sequence: int) -> tuple[tuple[AdapterPages, float], ...]:
    entries = range(inputs.start[sequence], inputs.start[sequence + 1])
    return tuple((inputs.adapters[inputs.adapter[e]], float(inputs.weight[e])) for e in entries)


def _by_rank(inputs: LoraInputs, loose: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Group loose rows by the bucket their widest adapter falls into."""
    widest = [int(pages.rank.max()) for pages in inputs.adapters]
    groups: dict[int, list[tuple[int, int]]] = {}
    for row, sequence in loose:
        entries = inputs.adapter[inputs.start[sequence] : inputs.start[sequence + 1]]
        rank = max(widest[a] for a in entries)
        bucket = next((b for b in _BUCKETS if rank <= b), rank)
        groups.setdefault(bucket, []).append((row, sequence))
    return list(groups.values())


def _gather_plan(
    shapes: Sequence[ModuleShape], inputs: LoraInputs, loose: list[tuple[int, int]], device: torch.device
) -> _Gathered:
    """Page indices and coefficients of every module for the ``loose`` rows, computed at once."""
    entries = [range(inputs.start[s], inputs.start[s + 1]) for _, s in loose]
    width = max(len(e) for e in entries)
    adapter = np.zeros((len(loose), width), np.int64)
    weight = np.zeros((len(loose), width), np.float32)
    for i, e in enumerate(entries):
        adapter[i, : len(e)] = inputs.adapter[e.start : e.stop]
        weight[i, : len(e)] = inputs.weight[e.start : e.stop]
    present = np.arange(width) < np.array([len(e) for e in entries])[:, None]
    a, b, coefficient = _page_grid(shapes, inputs.adapters, adapter, weight, present)
    return _Gathered(
        rows=_as_rows([row for row, _ in loose], device),
        a=torch.from_numpy(a).to(device),
        b=torch.from_numpy(b).to(device),
        coefficient=torch.from_numpy(coefficient).to(device),
        used=tuple(bool(u) for u in (coefficient != 0).any(axis=(1, 2))),
    )


def _as_rows(rows: list[int], device: torch.device) -> torch.Tensor | slice:
    """An index for ``rows``, ascending as they are."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)


def _page_grid(
    shapes: Sequence[ModuleShape],
    adapters: tuple[AdapterPages, ...],
    adapter: Int64,  # [R, E]
    weight: Float32,  # [R, E]
    present: np.ndarray,  # [R, E] bool
) -> tuple[Int64, Int64, Float32]:
    """Unit indices of A and B pages and their coefficients, each [M, R, E * max rank]."""
    a_len = np.array([page_length(s.in_features) for s in shapes], np.int64)
    b_len = np.array([page_length(s.out_features) for s in shapes], np.int64)
    rank = np.stack([p.rank[: len(shapes)] for p in adapters]).astype(np.int64)[adapter]  # [R, E, M]
    offset = np.stack([p.offset[: len(shapes)] for p in adapters])[adapter]
    page = np.arange(max(int(rank.max()), 1))
    valid = (page < rank[..., None]) & present[:, :, None, None]  # [R, E, M, r]
    a = np.where(valid, offset[..., None] + page * a_len[:, None], 0) // PAGE_ALIGN
    b = np.where(valid, (offset + rank * a_len)[..., None] + page * b_len[:, None], 0) // PAGE_ALIGN
    coefficient = np.where(valid, weight[:, :, None, None], np.float32(0))
    shape = (len(shapes), adapter.shape[0], -1)
    grids = (np.ascontiguousarray(g.transpose(2, 0, 1, 3)).reshape(shape) for g in (a, b, coefficient))
    return tuple(grids)  # type: ignore[return-value]
