"""Paged causal attention over a block-structured KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from manylora.server.kernels.buffers import sent, zeros
from manylora.server.kernels.inputs import BLOCK_SIZE, Int32, Int64, StepInputs


class LayerCache(Protocol):
    """K and V of one layer, by slot."""

    keys: torch.Tensor  # [blocks * BLOCK_SIZE, nkv, hd] as they are kept
    values: torch.Tensor  # [blocks * BLOCK_SIZE, nkv, hdv]

    def write(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store ``keys`` [T, nkv, hd] and ``values`` [T, nkv, hdv] at ``slots`` [T]."""

    def gather(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The K and V of ``blocks`` [S, B], each [S, B * BLOCK_SIZE, nkv, hd]."""


class PagedKV:
    """K and V of one layer: ``keys`` [blocks * BLOCK_SIZE, nkv, hd], ``values`` [..., nkv, hdv]."""

    def __init__(
        self, num_blocks: int, n_kv_heads: int, key_dim: int, value_dim: int, like: torch.Tensor
    ) -> None:
        slots = num_blocks * BLOCK_SIZE
        self.keys = zeros((slots, n_kv_heads, key_dim), like.dtype, like.device)
        self.values = zeros((slots, n_kv_heads, value_dim), like.dtype, like.device)

    def write(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store ``keys`` [T, nkv, hd] and ``values`` [T, nkv, hdv] at ``slots`` [T]."""
        self.keys[slots] = keys
        self.values[slots] = values

    def gather(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The K and V of ``blocks`` [S, B], each [S, B * BLOCK_SIZE, nkv, hd]."""
        return gather_blocks(self.keys, blocks), gather_blocks(self.values, blocks)


def gather_blocks(cache: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """What ``cache`` [slots, ...] has at the slots of ``blocks`` [S, B]: [S, B * BLOCK_SIZE, ...]."""
    flat = cache.view(-1, BLOCK_SIZE * cache.shape[1] * cache.shape[2])
    return flat.index_select(0, blocks.flatten()).view(blocks.shape[0], -1, *cache.shape[1:])


@dataclass(frozen=True)
class Scoring:
    """How the scores of queries and keys become weights."""

    scale: float
    window: int | None = None  # a row sees only so many positions, itself included
    softcap: float | None = None  # bounds the scores by c * tanh(s / c) (Gemma 2)


class RowAttention(Protocol):
    """The attention of some rows of a step."""

    def attend(self, kv: LayerCache, query: torch.Tensor, out: torch.Tensor, scoring: Scoring) -> None:
        """Fill the rows' part of ``out`` [T, nh, hdv] for ``query`` [T, nh, hd]."""


@dataclass(frozen=True)
class _Decode:
    """The sequences with one query row, attended together."""

    rows: torch.Tensor  # [R]
    blocks: torch.Tensor  # [R, B]
    context: torch.Tensor  # [R]
    stale: torch.Tensor  # [N] gathered positions, counted over all rows, behind a context in its last block

    def attend(self, kv: LayerCache, query: torch.Tensor, out: torch.Tensor, scoring: Scoring) -> None:
        keys, values = kv.gather(self.blocks)
        for gathered in (keys, values):
            # Left there by whoever had the block before: hidden by the mask, unless it is not finite.
            gathered.flatten(0, 1).index_fill_(0, self.stale, 0)
        mask = _visible(self.context - 1, keys.shape[1], scoring.window)[:, None, None]
        q = query[self.rows].unsqueeze(2)
        out[self.rows] = _sdpa(q, keys, values, mask, scoring).squeeze(2)


@dataclass(frozen=True)
class _Chunk:
    """One sequence with several query rows ``start : stop``; the last of them sees ``context`` tokens."""

    start: int
    stop: int
    blocks: torch.Tensor  # [1, B]
    context: int

    def attend(self, kv: LayerCache, query: torch.Tensor, out: torch.Tensor, scoring: Scoring) -> None:
        keys, values = (t[:, : self.context] for t in kv.gather(self.blocks))
        length = self.stop - self.start
        last = torch.arange(self.context - length, self.context, device=query.device)
        mask = _visible(last, self.context, scoring.window)[None, None]
        q = query[self.start : self.stop].transpose(0, 1)[None]
        attended = _sdpa(q, keys, values, mask, scoring)
        out[self.start : self.stop] = attended[0].transpose(0, 1)


@dataclass(frozen=True)
class AttentionPlan:
    """The attention work of one step, prepared once and used by every layer."""

    slots: torch.Tensor  # [T] where the rows' K and V are written
    parts: Sequence[RowAttention]  # of all rows

    def attend(self, kv: LayerCache, query: torch.Tensor, scoring: Scoring) -> torch.Tensor:
        """Attention output [T, nh, hdv] of ``query`` [T, nh, hd]; K and V must already be written."""
        out = query.new_empty(query.shape[0], query.shape[1], kv.values.shape[2])
        for part in self.parts:
            part.attend(kv, query, out, scoring)
        return out


PlanAttention = Callable[[StepInputs, torch.device], AttentionPlan]


def plan_attention(inputs: StepInputs, device: torch.device) -> AttentionPlan:
    """The attention of a step whose tensors are on ``device``."""
    counts = np.diff(inputs.query_start)
    single = np.flatnonzero(counts == 1)
    parts: list[RowAttention] = []
    if len(single):
        parts.append(_decode_group(inputs, single, device))
    parts += [_chunk(inputs, int(s), device) for s in np.flatnonzero(counts > 1)]
    return AttentionPlan(sent(inputs.slots, device), parts)


def _decode_group(inputs: StepInputs, single: np.ndarray, device: torch.device) -> _Decode:
    context = inputs.context[single]
    width = -(-int(context.max()) // BLOCK_SIZE)
    return _Decode(
        rows=sent(inputs.query_start[single].astype(np.int64), device),
        blocks=sent(inputs.block_tables[single, :width].astype(np.int64), device),
        context=sent(context.astype(np.int64), device),
        stale=sent(_stale_positions(context, width * BLOCK_SIZE), device),
    )


def _stale_positions(context: Int32, length: int) -> Int64:
    """For rows of ``length`` gathered positions: those from each row's context to the end of its block."""
    offsets = np.arange(BLOCK_SIZE)
    positions = context[:, None].astype(np.int64) + offsets
    stale = offsets < (-context[:, None]) % BLOCK_SIZE
    return (positions + length * np.arange(len(context))[:, None])[stale]


def _chunk(inputs: StepInputs, sequence: int, device: torch.device) -> _Chunk:
    context = int(inputs.context[sequence])
    width = -(-context // BLOCK_SIZE)
    return _Chunk(
        start=int(inputs.query_start[sequence]),
        stop=int(inputs.query_start[sequence + 1]),
        blocks=sent(inputs.block_tables[sequence : sequence + 1, :width].astype(np.int64), device),
        context=context,
    )


def _visible(positions: torch.Tensor, length: int, window: int | None) -> torch.Tensor:
    """Mask [len(positions), length]: True where the row at that position may look."""
    columns = torch.arange(length, device=positions.device)
    mask = columns <= positions[:, None]
    if window is not None:
        mask &= columns > positions[:, None] - window
    return mask


def _sdpa(
    query: torch.Tensor,  # [S, nh, n, hd]
    keys: torch.Tensor,  # [S, L, nkv, hd]
    values: torch.Tensor,  # [S, L, nkv, hdv]
    mask: torch.Tensor,  # broadcastable to [S, 1, n, L]
    scoring: Scoring,
) -> torch.Tensor:
    """Attention output [S, nh, n, hdv]; the query heads of a group become rows of their KV head."""
    k, v = keys.transpose(1, 2), values.transpose(1, 2)
    groups = query.shape[1] // k.shape[1]
    rows = query.unflatten(1, (-1, groups)).flatten(2, 3)  # [S, nkv, groups * n, hd]
    if mask.shape[2] > 1:
        mask = mask.repeat(1, 1, groups, 1)
    if scoring.softcap is None:
        # 8 times faster on a CPU than letting the library repeat the KV heads of one-row queries.
        out = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scoring.scale)
    else:
        scores = (rows @ k.transpose(-1, -2)).float() * scoring.scale
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
        out = scores.masked_fill(~mask, float("-inf")).softmax(-1).to(query.dtype) @ v
    per_head: torch.Tensor = out.unflatten(2, (groups, -1)).flatten(1, 2)
    return per_head
