"""Paged attention of chunks of prompts in Triton. It takes no memory beside its output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.cuda.prompt_kernels import attend_chunks
from manylora.server.kernels.cuda.types import dot_type, multiplies, shared_memory, tile_of, window_of
from manylora.server.kernels.inputs import BLOCK_SIZE, StepInputs
from manylora.server.kernels.reference.attention import AttentionPlan, LayerCache, Scoring


@dataclass(frozen=True)
class Tiles:
    """How much a program takes at once."""

    rows: int  # rows times the query heads of a group
    tokens: int  # of the context
    warps: int
    stages: int  # of the context that are read ahead, the one that is computed with included


def tiles_for(shared: int, group: int, widths: tuple[int, int], size: int, cores: bool) -> Tiles:
    """The largest tiles that fit ``shared`` bytes of memory of a processor, for elements of ``size`` bytes.

    ``group``: query heads that share keys; ``widths``: tiles of a key and of a value. Wide heads also fill
    the registers and get fewer rows. Without tensor ``cores`` for such elements operands are in registers:
    then all heads get the fewest.
    """
    key_tile, value_tile = widths
    wide = max(key_tile, value_tile) * size > 256
    for rows, tokens, stages in ((128, 64, 2), (64, 64, 2), (64, 32, 2), (32, 32, 1), (16, 16, 1)):
        if rows > (64 if wide else 128) or (rows > 16 and not cores):
            continue
        filled = max(rows, tile_of(group))
        needed = filled * (key_tile + tokens) + stages * tokens * (key_tile + value_tile)
        if needed * size <= shared:
            return Tiles(filled, tokens, 8 if filled * max(key_tile, value_tile) >= 128 * 128 else 4, stages)
    return Tiles(tile_of(group), 16, 4, 1)


@dataclass(frozen=True)
class Chunks:
    """Rows that follow each other in their sequences. The launch depends on the sizes here only."""

    # [n, 4] int32: first row, last row + 1, position of the first, where its sequence begins in ``blocks``
    work: torch.Tensor
    blocks: torch.Tensor  # [B] int32
    rows: int  # of the longest

    @classmethod
    def of(cls, inputs: StepInputs, several: np.ndarray, device: torch.device) -> Chunks:
        """Of the sequences ``several``."""
        first, last = inputs.query_start[several], inputs.query_start[several + 1]
        context = inputs.context[several]
        width = triton.cdiv(int(context.max()), BLOCK_SIZE)
        begin = width * np.arange(len(several))
        work = np.stack([first, last, context - (last - first), begin], axis=1).astype(np.int32)
        return cls(
            work=sent(work, device),
            blocks=sent(inputs.block_tables[several, :width].reshape(-1), device),
            rows=int((last - first).max()),
        )

    def attend(self, kv: LayerCache, query: torch.Tensor, out: torch.Tensor, scoring: Scoring) -> None:
        """Fill the rows' part of ``out`` [T, nh, hdv] for ``query`` [T, nh, hd]."""
        heads, (_, kv_heads, key_dim) = query.shape[1], kv.keys.shape
        value_dim, group = kv.values.shape[2], heads // kv_heads
        query = query.flatten(1)
        key_tile, value_tile = tile_of(key_dim), tile_of(value_dim)
        size, device = query.element_size(), query.device
        cores = multiplies(device, query.dtype)
        tiles = tiles_for(shared_memory(device), group, (key_tile, value_tile), size, cores)
        softcap = scoring.softcap
        attend_chunks[(triton.cdiv(self.rows, tiles.rows // group), kv_heads, len(self.work))](
            query, query.stride(0), kv.keys, kv.values, self.work, self.blocks, out,
            scoring.scale, window_of(scoring), 0.0 if softcap is None else softcap,
            GROUP=group, TILE=tiles.rows, KEY_DIM=key_dim, KEY_TILE=key_tile,
            VALUE_DIM=value_dim, VALUE_TILE=value_tile, TOKENS=tiles.tokens, BLOCK=BLOCK_SIZE,
            SOFTCAP=softcap is not None, DOT=dot_type(query.dtype),
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip


def plan_chunks(inputs: StepInputs, device: torch.device) -> AttentionPlan:
    """The attention of a step all of whose rows go this way, single ones of their sequences, too."""
    every = np.arange(len(inputs.context))
    return AttentionPlan(sent(inputs.slots, device), [Chunks.of(inputs, every, device)])
