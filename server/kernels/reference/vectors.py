"""What a step's mixes have beside rank pages.

That is ``y += Σ_k w_k (ΔW_k x + γ_k ⊙ y + π_k ⊙ P_k y + c_k) + W (Σ_k w_k (λ_k ⊙ x + x Q_k))``.

Those of a norm are told to who computes it: ``y += Σ_k w_k (γ_k ⊙ n(x) + c_k)``.

The weighted sums of vectors are made once for every distinct mix and given to its rows. Everything up to
the matrix product is fp32. A ΔW, π or Q multiplies all rows whose mix has its adapter at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from manylora.server.kernels.inputs import (
    PAGE_ALIGN,
    BaseProducts,
    Float32,
    Int32,
    Int64,
    LoraInputs,
    ModuleShape,
    VectorPages,
    page_length,
)


@dataclass(frozen=True)
class _Vectors:
    """One kind of vector for all modules and the step's mixes: K mixes of at most E members.

    Page indices count units of PAGE_ALIGN elements; absent ones point at the pool's zero page.
    """

    page: torch.Tensor  # [M, K, E]
    used: tuple[bool, ...]  # [M] whether any mix has one there


@dataclass(frozen=True)
class _Member:
    """The rows whose mix has an adapter with matrices, or with partners."""

    pages: VectorPages
    rows: torch.Tensor  # [R] int64, of the step
    place: torch.Tensor  # [R] int64, among the rows that have anything beside rank pages
    weight: torch.Tensor  # [R] float32

    def changes(self, module: int) -> bool:
        """Whether the adapter has such a change of the outputs of that module."""
        return bool(self.pages.change[module] or self.pages.partner[module])

    def mixes_inputs(self, module: int) -> bool:
        """Whether it mixes the module's inputs."""
        return bool(self.pages.input_blocks[module])


@dataclass(frozen=True)
class NormChange:
    """What the step's mixes add to a norm's output in some rows: ``gain ⊙ n(x) + constant``."""

    rows: torch.Tensor  # [R] int64, ascending
    gain: torch.Tensor | None  # [R, D] float32
    constant: torch.Tensor | None  # [R, D] float32

    def of(self, normal: torch.Tensor) -> torch.Tensor:
        """What is added, float32, for the rows' n(x): ``normal`` [R, ..., D]."""
        shape = (len(self.rows), *(1,) * (normal.dim() - 2), normal.shape[-1])
        added = torch.zeros((), device=normal.device)
        if self.gain is not None:
            added = self.gain.view(shape) * normal
        return added if self.constant is None else added + self.constant.view(shape)


class VectorPlan:
    """The gains and constants of one step, prepared once and applied by every target module and norm."""

    def __init__(
        self,
        pool: torch.Tensor,
        shapes: Sequence[ModuleShape],
        inputs: LoraInputs,
        query_start: Int32,
        base: BaseProducts,
    ) -> None:
        self._pool = pool
        self._shapes = shapes
        self._base = base
        members, mix = _distinct_mixes(inputs)
        concerned = np.flatnonzero(np.repeat(mix, np.diff(query_start)) >= 0)
        self._rows = torch.from_numpy(concerned).to(pool.device)
        self._mix = torch.from_numpy(np.repeat(mix, np.diff(query_start))[concerned]).to(pool.device)
        adapter, weight = _member_grid(inputs, members)
        self._weight = torch.from_numpy(weight).to(pool.device)  # [K, E]
        tables = [pages.vectors for pages in inputs.adapters]
        self._gain = _vectors([_of(t, "gain", shapes) for t in tables], adapter, pool.device)
        self._constant = _vectors([_of(t, "constant", shapes) for t in tables], adapter, pool.device)
        self._input_gain = _vectors([_of(t, "input_gain", shapes) for t in tables], adapter, pool.device)
        self._members = _members(inputs, query_start, mix, pool.device)

    def add(self, module: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add to the base's output ``y`` [T, out] of ``module`` for input ``x`` [T, in], in place."""
        shape = self._shapes[module]
        gain = self._sum(self._gain, module, shape.out_features)
        constant = self._sum(self._constant, module, shape.out_features)
        scaled = self._scaled(module, x)
        changing = [member for member in self._members if member.changes(module)]
        if gain is None and constant is None and scaled is None and not changing:
            return
        result = y.index_select(0, self._rows).float()
        if gain is not None:
            result += result * gain
        if constant is not None:
            result += constant
        if scaled is not None:
            result += self._base.product(module, scaled)
        for member in changing:
            added = self._added(
                member, module, x.index_select(0, member.rows), y.index_select(0, member.rows)
            )
            result.index_add_(0, member.place, added * member.weight[:, None])
        y.index_copy_(0, self._rows, result.to(y.dtype))

    def norm_change(self, module: int) -> NormChange | None:
        """What is added to the output of a norm, or None where no mix adds anything."""
        features = self._shapes[module].out_features
        gain, constant = (self._sum(v, module, features) for v in (self._gain, self._constant))
        return None if gain is None and constant is None else NormChange(self._rows, gain, constant)

    def _scaled(self, module: int, x: torch.Tensor) -> torch.Tensor | None:
        """Σ_k w_k (λ_k ⊙ x + x Q_k) [R, in] of all concerned rows, in their dtype; None if no mix has any."""
        gain = self._sum(self._input_gain, module, self._shapes[module].in_features)
        mixing = [member for member in self._members if member.mixes_inputs(module)]
        if gain is None and not mixing:
            return None
        rows = x.index_select(0, self._rows).float()
        scaled = torch.zeros_like(rows) if gain is None else rows * gain
        for member in mixing:
            mixed = self._mixed(member.pages, module, x.index_select(0, member.rows).float())
            scaled.index_add_(0, member.place, mixed * member.weight[:, None])
        return scaled.to(x.dtype)

    def _mixed(self, pages: VectorPages, module: int, x: torch.Tensor) -> torch.Tensor:
        """x Q [R, in] for ``x`` [R, in]."""
        width, size = x.shape[1], int(pages.block_size[module])
        behind = -width % size  # of the last block, which is cut off
        blocks = F.pad(self._view(pages.input_blocks, module, width, size).float(), (0, 0, 0, behind))
        inputs = F.pad(x, (0, behind)).unflatten(1, (-1, size)).transpose(0, 1)
        return torch.bmm(inputs, blocks.view(-1, size, size)).transpose(0, 1).flatten(1)[:, :width]

    def _added(self, member: _Member, module: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """ΔW x + π ⊙ P y [R, out] float32 for the member's rows of ``x`` and ``y``."""
        shape, pages = self._shapes[module], member.pages
        added = torch.zeros(y.shape, device=y.device)
        if pages.change[module]:
            added += F.linear(x, self._view(pages.change, module, shape.out_features, shape.in_features))
        if pages.partner[module]:
            halves = y.float().unflatten(1, (-1, 2, int(pages.distance[module])))
            added += self._view(pages.partner, module, 1, shape.out_features) * halves.flip(2).flatten(1)
        return added

    def _view(self, offset: Int64, module: int, rows: int, features: int) -> torch.Tensor:
        """The matrix [rows, features] of a module that begins at its ``offset``."""
        start = self._pool.storage_offset() + int(offset[module])
        return self._pool.as_strided((rows, features), (page_length(features), 1), start)

    def _sum(self, vectors: _Vectors, module: int, features: int) -> torch.Tensor | None:
        """The weighted sum for every concerned row [R, features]; None where no mix has a vector."""
        if not vectors.used[module]:
            return None
        length = page_length(features)
        units = (self._pool.numel() - length) // PAGE_ALIGN + 1
        view = self._pool.as_strided((units, length), (PAGE_ALIGN, 1))
        page = vectors.page[module]
        pages = view.index_select(0, page.flatten()).view(*page.shape, length)[..., :features]
        return (pages.float() * self._weight[..., None]).sum(1).index_select(0, self._mix)


def _distinct_mixes(inputs: LoraInputs) -> tuple[list[range], Int64]:
    """The entries of each distinct mix that has vectors, and each sequence's number among them or -1."""
    found: dict[tuple[bytes, bytes], int] = {}
    members: list[range] = []
    mix = np.full(len(inputs.start) - 1, -1, np.int64)
    for sequence in range(len(mix)):
        entries = slice(inputs.start[sequence], inputs.start[sequence + 1])
        adapters = inputs.adapter[entries]
        if all(inputs.adapters[a].vectors is None for a in adapters):
            continue
        key = (adapters.tobytes(), inputs.weight[entries].tobytes())
        if key not in found:
            found[key] = len(members)
            members.append(range(entries.start, entries.stop))
        mix[sequence] = found[key]
    return members, mix


def _members(inputs: LoraInputs, query_start: Int32, mix: Int64, device: torch.device) -> list[_Member]:
    """One of each adapter that has any; ``mix`` is that of :func:`_distinct_mixes`."""
    found = []
    owner = np.repeat(np.arange(len(inputs.start) - 1), np.diff(inputs.start))  # [E] the entry's sequence
    length = np.diff(query_start)
    place = np.cumsum(np.repeat(mix, length) >= 0) - 1
    for number, pages in enumerate(inputs.adapters):
        vectors = pages.vectors
        if vectors is None or not any(
            t.any() for t in (vectors.change, vectors.partner, vectors.input_blocks)
        ):
            continue
        weight = np.zeros(len(length), np.float32)
        np.add.at(weight, owner[inputs.adapter == number], inputs.weight[inputs.adapter == number])
        rows = np.flatnonzero(np.repeat(weight, length))
        each = (rows, place[rows], np.repeat(weight, length)[rows])
        found.append(_Member(vectors, *(torch.from_numpy(a).to(device) for a in each)))
    return found


def _member_grid(inputs: LoraInputs, members: Sequence[range]) -> tuple[Int64, Float32]:
    """Adapter numbers and weights of the mixes, each [K, E]; the weights of absent members are 0."""
    width = max((len(entries) for entries in members), default=0)
    adapter = np.zeros((len(members), width), np.int64)
    weight = np.zeros((len(members), width), np.float32)
    for i, entries in enumerate(members):
        adapter[i, : len(entries)] = inputs.adapter[entries.start : entries.stop]
        weight[i, : len(entries)] = inputs.weight[entries.start : entries.stop]
    return adapter, weight


def _of(vectors: VectorPages | None, kind: str, shapes: Sequence[ModuleShape]) -> Int64:
    table: Int64 = np.zeros(len(shapes), np.int64) if vectors is None else getattr(vectors, kind)
    return table


def _vectors(tables: Sequence[Int64], adapter: Int64, device: torch.device) -> _Vectors:
    """``tables`` holds the offsets [M] of each adapter; ``adapter`` [K, E] says who is in which mix."""
    page = np.ascontiguousarray(np.stack(tables)[adapter].transpose(2, 0, 1)) // PAGE_ALIGN
    return _Vectors(torch.from_numpy(page).to(device), tuple((page != 0).any(axis=(1, 2)).tolist()))
