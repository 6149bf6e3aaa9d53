"""Paged attention of decode rows in Triton; chunks of prompts are attended as in the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton

from manylora.server.kernels.cuda.attention_kernels import attend_partition, join_partitions
from manylora.server.kernels.cuda.types import dot_type
from manylora.server.kernels.inputs import BLOCK_SIZE, StepInputs
from manylora.server.kernels.reference.attention import LayerCache, Scoring

PARTITION = 128  # tokens of a context that one program attends to; never a matter of the batch
_TOKENS = 32  # taken together; a partition is a multiple of them
_LEAST_TILE = 16  # that tensor cores multiply
_NO_WINDOW = 2**30  # more than any context


@dataclass(frozen=True)
class DecodeRows:
    """Rows that are their sequences' only ones in the step. Launches depend on the sizes here only."""

    rows: torch.Tensor  # [n] int32
    context: torch.Tensor  # [n] int32; 0 for padding, whose output is zero
    blocks: torch.Tensor  # [n, B] int32
    partitions: int  # as many as the longest context has

    def attend(self, kv: LayerCache, query: torch.Tensor, out: torch.Tensor, scoring: Scoring) -> None:
        """Fill the rows' part of ``out`` [T, nh, hdv] for ``query`` [T, nh, hd]."""
        n, heads, (_, kv_heads, key_dim) = len(self.rows), query.shape[1], kv.keys.shape
        value_dim, group = kv.values.shape[2], heads // kv_heads
        query = query.flatten(1)
        per_partition = n, heads, self.partitions
        peak, total = (query.new_empty(per_partition, dtype=torch.float32) for _ in range(2))
        weighted = query.new_empty(*per_partition, value_dim, dtype=torch.float32)
        span = _NO_WINDOW if scoring.window is None else scoring.window
        softcap = scoring.softcap
        attend_partition[(n, kv_heads, self.partitions)](
            query, query.stride(0), kv.keys, kv.values, self.rows, self.context,
            self.blocks, self.blocks.stride(0), self.partitions, peak, total, weighted,
            scoring.scale, span, 0.0 if softcap is None else softcap,
            GROUP=group, GROUP_TILE=_tile(group),
            KEY_DIM=key_dim, KEY_TILE=_tile(key_dim), VALUE_DIM=value_dim, VALUE_TILE=_tile(value_dim),
            PARTITION=PARTITION, TOKENS=_TOKENS, BLOCK=BLOCK_SIZE,
            SOFTCAP=softcap is not None, DOT=dot_type(query.dtype),
        )  # fmt: skip
        join_partitions[(n, heads)](
            peak, total, weighted, self.rows, self.context, self.partitions, span, out,
            VALUE_DIM=value_dim, VALUE_TILE=_tile(value_dim), PARTITION=PARTITION,
        )  # fmt: skip


def decode_rows(inputs: StepInputs, single: np.ndarray, device: torch.device) -> DecodeRows:
    """The work of the sequences ``single``, which have one row each."""
    context = inputs.context[single]
    width = triton.cdiv(int(context.max()), BLOCK_SIZE)
    return DecodeRows(
        rows=torch.from_numpy(inputs.query_start[single]).to(device),
        context=torch.from_numpy(context).to(device),
        blocks=torch.from_numpy(np.ascontiguousarray(inputs.block_tables[single, :width])).to(device),
        partitions=triton.cdiv(int(context.max()), PARTITION),
    )


def _tile(size: int) -> int:
    return max(_LEAST_TILE, 1 << (size - 1).bit_length())
