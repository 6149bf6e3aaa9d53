"""Paged attention in Triton: of decode rows here, of chunks of prompts by ``prompts.py``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.cuda.attention_kernels import attend_partition, join_partitions
from manylora.server.kernels.cuda.prompts import Chunks
from manylora.server.kernels.cuda.types import dot_type, multiplies, tile_of, window_of
from manylora.server.kernels.inputs import BLOCK_SIZE, StepInputs
from manylora.server.kernels.reference.attention import AttentionPlan, LayerCache, RowAttention, Scoring

PARTITION = 128  # tokens of the smallest partition; never a matter of the batch
MOST_PARTITIONS = 32  # of a row: beyond so many of the smallest they grow instead
TOKENS = 32  # taken together; a partition is a multiple of them


@dataclass(frozen=True)
class Partitions:
    """What partitions have computed, for all rows and heads."""

    count: int  # that there is room for, a row
    peak: torch.Tensor  # [n, heads, count] float32
    total: torch.Tensor  # [n, heads, count] float32
    weighted: torch.Tensor  # [n, heads, count, hdv] float32


@dataclass(frozen=True)
class DecodeRows:
    """Rows that are their sequences' only ones in the step. Launches depend on the sizes here only."""

    rows: torch.Tensor  # [n] int32
    context: torch.Tensor  # [n] int32; 0 for padding, whose output is zero
    blocks: torch.Tensor  # [n, B] int32
    partitions: int  # of the smallest size, as many as the longest context has, or more

    def attend(self, kv: LayerCache, query: torch.Tensor, out: torch.Tensor, scoring: Scoring) -> None:
        """Fill the rows' part of ``out`` [T, nh, hdv] for ``query`` [T, nh, hd]."""
        parts = self.attend_partitions(kv, query, scoring)
        heads, value_dim = query.shape[1], kv.values.shape[2]
        join_partitions[(len(self.rows), heads)](
            parts.peak, parts.total, parts.weighted, self.rows, self.context, parts.count,
            window_of(scoring), out,
            VALUE_DIM=value_dim, VALUE_TILE=tile_of(value_dim),
            LEAST=PARTITION, MOST=MOST_PARTITIONS, TOKENS=TOKENS,
        )  # fmt: skip

    def attend_partitions(self, kv: LayerCache, query: torch.Tensor, scoring: Scoring) -> Partitions:
        """The first half of :meth:`attend`: what a row's partitions are before they are joined."""
        n, heads, (_, kv_heads, key_dim) = len(self.rows), query.shape[1], kv.keys.shape
        value_dim, group = kv.values.shape[2], heads // kv_heads
        query = query.flatten(1)
        window, softcap = window_of(scoring), scoring.softcap
        count = partitions_of(self.partitions, scoring.window)
        key_tile, value_tile = tile_of(key_dim), tile_of(value_dim)
        cores = multiplies(query.device, query.dtype)
        step = together(max(key_tile, value_tile) * query.element_size(), cores)
        peak, total = (query.new_empty(n, heads, count, dtype=torch.float32) for _ in range(2))
        weighted = query.new_empty(n, heads, count, value_dim, dtype=torch.float32)
        attend_partition[(n, kv_heads, count)](
            query, query.stride(0), kv.keys, kv.values, self.rows, self.context,
            self.blocks, self.blocks.stride(0), count, peak, total, weighted,
            scoring.scale, window, 0.0 if softcap is None else softcap,
            GROUP=group, GROUP_TILE=tile_of(group),
            KEY_DIM=key_dim, KEY_TILE=key_tile, VALUE_DIM=value_dim, VALUE_TILE=value_tile,
            LEAST=PARTITION, MOST=MOST_PARTITIONS, TOKENS=TOKENS, STEP=step, BLOCK=BLOCK_SIZE,
            SOFTCAP=softcap is not None, DOT=dot_type(query.dtype),
        )  # fmt: skip
        return Partitions(count, peak, total, weighted)


def together(width: int, cores: bool) -> int:
    """How many of TOKENS a program takes at once, whose keys and values are ``width`` bytes each.

    Without tensor ``cores`` for them operands are in registers, which so many wide ones would overflow.
    """
    return TOKENS // 2 if width > 256 and not cores else TOKENS


def partitions_of(smallest: int, window: int | None) -> int:
    """How many partitions a row may have that so many of the smallest size cover, seen through ``window``."""
    if window is not None:
        smallest = min(smallest, triton.cdiv(window + TOKENS - 1, PARTITION))
    return min(smallest, MOST_PARTITIONS)


def scratch_bytes(rows: int, context: int, heads: int, value_dim: int) -> int:
    """Bytes that the attention of ``rows`` decode rows takes while it runs, whatever its layer is.

    ``context``: tokens of the longest. They are bounded: beyond MOST_PARTITIONS * PARTITION tokens nothing is
    added.
    """
    count = partitions_of(triton.cdiv(context, PARTITION), None)
    return rows * heads * count * (value_dim + 2) * torch.float32.itemsize


def plan_attention(inputs: StepInputs, device: torch.device) -> AttentionPlan:
    """The attention of a step, as :func:`manylora.server.kernels.reference.attention.plan_attention`."""
    counts = np.diff(inputs.query_start)
    single, several = np.flatnonzero(counts == 1), np.flatnonzero(counts > 1)
    parts: list[RowAttention] = []
    if len(single):
        parts.append(decode_rows(inputs, single, device))
    if len(several):
        parts.append(Chunks.of(inputs, several, device))
    return AttentionPlan(sent(inputs.slots, device), parts)


def decode_rows(inputs: StepInputs, single: np.ndarray, device: torch.device) -> DecodeRows:
    """The work of the sequences ``single``, which have one row each."""
    context = inputs.context[single]
    width = triton.cdiv(int(context.max()), BLOCK_SIZE)
    return DecodeRows(
        rows=sent(inputs.query_start[single], device),
        context=sent(context, device),
        blocks=sent(np.ascontiguousarray(inputs.block_tables[single, :width]), device),
        partitions=triton.cdiv(int(context.max()), PARTITION),
    )
