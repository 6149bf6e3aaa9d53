"""Steps of chunks of prompts over memory that stays in place; see ``replayed.py``.

A sequence may have any number of rows. How many there are, how long their contexts are and which rows' logits
are wanted lies in the buffers. Rows that fill up see nothing, have no adapter and a slot in block 0, which is
nobody's; so are tiles of mixes and pieces of attention that fill up those there is room for.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from manylora.server.kernels.cuda.lora import TILE_ROWS, tiles_of
from manylora.server.kernels.cuda.prompts import Chunks
from manylora.server.kernels.cuda.replay.buckets import MAX_BLOCKS, ChunkBucket, chunk_bucket_for
from manylora.server.kernels.cuda.replay.mix_buffers import Adapters, GivenRows, MixBuffers, fits
from manylora.server.kernels.cuda.replay.pinned_arrays import Mirror
from manylora.server.kernels.inputs import BLOCK_SIZE, Int32, StepInputs
from manylora.server.kernels.reference.attention import AttentionPlan
from manylora.server.kernels.reference.lora import split_rows

_PIECE = 64  # rows of a sequence that attention takes as one item of its work


def chunk_bucket_of(inputs: StepInputs, takes: Adapters, most: int) -> ChunkBucket | None:
    """The bucket of at most ``most`` rows that holds a step of adapters that are taken; None if none does.

    A sequence with one row is not held: its context would be read by one program for each KV head.
    """
    if inputs.cached or inputs.merged is not None or np.diff(inputs.query_start).min() == 1:
        return None
    sequences = max(len(inputs.context), len(inputs.logits_rows))
    bucket = chunk_bucket_for(len(inputs.token_ids), sequences)
    if bucket is None or bucket.rows > most or blocks_of(inputs).sum() > MAX_BLOCKS:
        return None
    return bucket if fits(inputs.lora, bucket.sequences, takes) else None


def blocks_of(inputs: StepInputs) -> Int32:
    """Blocks of each sequence's context."""
    return -(-inputs.context // BLOCK_SIZE)


class RowBucket(Protocol):
    """The sizes for which one graph stands."""

    @property
    def rows(self) -> int:
        """That it has."""

    @property
    def sequences(self) -> int:
        """How many it holds at most, and rows whose logits are wanted."""

    @property
    def blocks(self) -> int:
        """That the contexts of its sequences take together, at most."""


class ChunkBuffers:
    """The arguments of the steps of one bucket."""

    def __init__(self, bucket: RowBucket, modules: int, like: torch.Tensor) -> None:
        """Adapters are of ``modules``, norms included; ``like`` [.., D] is what embeddings are like."""
        rows, sequences, device = bucket.rows, bucket.sequences, like.device
        self.num_logits = sequences
        # Each sequence may have a piece or a tile that is not full, and so may the rows that fill up.
        pieces, tiles = -(-rows // _PIECE) + sequences + 1, -(-rows // TILE_ROWS) + sequences
        self._step = Mirror(
            {
                "token_ids": ((rows,), torch.int64),
                "positions": ((rows,), torch.int64),
                "slots": ((rows,), torch.int64),
                "sequences": ((rows,), torch.int32),
                "logits_rows": ((sequences,), torch.int64),
                "pieces": ((pieces, 4), torch.int32),
                "blocks": ((bucket.blocks,), torch.int32),
                "tiles": ((tiles, 3), torch.int32),
            },
            device,
        )
        there = self._step.device
        self.token_ids, self.positions = there["token_ids"], there["positions"]
        self.slots, self.sequences = there["slots"], there["sequences"]
        self.logits_rows: torch.Tensor | None = there["logits_rows"]
        chunks = Chunks(there["pieces"], there["blocks"], min(_PIECE, rows))
        self.attention = AttentionPlan(self.slots, [chunks])
        self.groups: torch.Tensor | None = None
        self.tiles: torch.Tensor | None = there["tiles"]
        self._nobody = sequences  # a sequence that never has a mix
        self.mixes = MixBuffers(sequences + 1, modules, device)
        self.given = GivenRows(rows, like)

    def fill(self, inputs: StepInputs) -> None:
        """Send a step that this bucket holds."""
        n, here = len(inputs.token_ids), self._step.host
        counts = np.diff(inputs.query_start)
        self._step.wait()
        for name in ("token_ids", "positions", "slots"):
            here[name][:n] = getattr(inputs, name)
            here[name][n:] = 0
        here["sequences"][:n] = np.repeat(np.arange(len(counts)), counts)
        here["sequences"][n:] = -1
        here["logits_rows"][: len(inputs.logits_rows)] = inputs.logits_rows
        here["logits_rows"][len(inputs.logits_rows) :] = 0
        self._fill_attention(inputs)
        if inputs.lora is not None:
            segments, _ = split_rows(inputs.lora, inputs.query_start, 1)
            tiles = tiles_of(segments)
            here["tiles"][: len(tiles)] = tiles
            here["tiles"][len(tiles) :] = (0, 0, self._nobody)
        self._step.send()
        self.mixes.fill(inputs.lora)
        self.given.fill(inputs.embedded)

    def _fill_attention(self, inputs: StepInputs) -> None:
        here, n, held = self._step.host, len(inputs.token_ids), blocks_of(inputs)
        there = np.arange(inputs.block_tables.shape[1]) < held[:, None]
        here["blocks"][: held.sum()] = inputs.block_tables[there]
        lines = _pieces(inputs, held)
        count = len(lines)
        here["pieces"][:count] = lines
        # Before the first position there is nothing to see: zeros are stored, and nothing is left as it was.
        rows = len(here["token_ids"])
        spare = np.arange(n, rows, _PIECE)
        here["pieces"][count : count + len(spare)] = np.stack(
            [spare, np.minimum(spare + _PIECE, rows), np.full_like(spare, -_PIECE), np.zeros_like(spare)],
            axis=1,
        )
        here["pieces"][count + len(spare) :] = 0


def _pieces(inputs: StepInputs, held: Int32) -> Int32:
    """The work [n, 4] of attention, as :class:`Chunks` has it; ``held``: the blocks of each sequence."""
    first, last = inputs.query_start[:-1], inputs.query_start[1:]
    counts = -(-(last - first) // _PIECE)
    owner = np.repeat(np.arange(len(counts)), counts)
    row = first[owner] + _PIECE * (np.arange(len(owner)) - (counts.cumsum() - counts)[owner])
    behind, begin = inputs.context - last, held.cumsum() - held  # a row's position is its number and this
    return np.stack(
        [row, np.minimum(row + _PIECE, last[owner]), row + behind[owner], begin[owner]], axis=1
    ).astype(np.int32)
