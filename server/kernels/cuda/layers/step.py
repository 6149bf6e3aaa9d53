"""Whole steps on the fused layers, with the weights and the cache of the reference's step."""

from __future__ import annotations

import numpy as np
import torch

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.cuda.attention import decode_rows, plan_attention
from manylora.server.kernels.cuda.layers.fused import FusedLayers, FusedWork
from manylora.server.kernels.cuda.layers.row_mixes import RowMixes, Takes, row_mixes
from manylora.server.kernels.cuda.lora import TiledPages
from manylora.server.kernels.cuda.replay.mix_buffers import MAX_RANK
from manylora.server.kernels.cuda.replay.replayed import StepBuffers, Variant
from manylora.server.kernels.inputs import StepInputs
from manylora.server.kernels.reference.step import ReferenceStep, target_shapes


class FusedStep:
    """Runs the steps whose adapters ``takes`` takes."""

    def __init__(self, reference: ReferenceStep, pool: torch.Tensor) -> None:
        weights = reference.weights
        self.takes = Takes(weights)
        self._reference = reference
        self._pool = pool
        self._layers = FusedLayers(weights, target_shapes(weights))

    def step(self, inputs: StepInputs) -> torch.Tensor:
        """As :meth:`ReferenceStep.step`."""
        reference, device = self._reference, self._pool.device
        x = reference.embedded(inputs)
        single = np.flatnonzero(np.diff(inputs.query_start) == 1)
        alone = len(single) == len(inputs.context)
        mixes = row_mixes(self._pool, inputs, self.takes.modules, self.takes)
        work = FusedWork(
            sent(inputs.positions, device),
            sent(inputs.slots, device),
            decode_rows(inputs, single, device) if alone else plan_attention(inputs, device),
            mixes,
        )
        layers, norm = reference.layers_of(inputs.merged)
        hidden = self._layers.run(layers, reference.cache, x, work)
        rows = sent(inputs.logits_rows, device)
        return reference.logits_of(self._layers.final(hidden, norm, mixes, rows), inputs)

    def replayable(self, x: torch.Tensor, buffers: StepBuffers, variant: Variant) -> torch.Tensor:
        """What the head is applied to [R, D], of the rows in ``buffers`` with the embeddings ``x`` [T, D]."""
        reference = self._reference
        mixes = self._mixes(buffers, variant.scaled) if variant.adapted else None
        work = FusedWork(buffers.positions, buffers.slots, buffers.attention, mixes)
        hidden = self._layers.run(reference.layers, reference.cache, x, work)
        return self._layers.final(hidden, reference.final_norm, mixes, buffers.logits_rows)

    def _mixes(self, buffers: StepBuffers, scaled: bool) -> RowMixes:
        pool, tables, tiles = self._pool, buffers.mixes.tables, buffers.tiles
        tiled = None if tiles is None else TiledPages(pool, tables, MAX_RANK, tiles, vectors=True)
        return RowMixes(pool, tables, buffers.sequences, buffers.groups, MAX_RANK, tiled, scaled)
