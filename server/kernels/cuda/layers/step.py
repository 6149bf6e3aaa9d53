"""Whole steps on the fused layers, with the weights and the cache of the reference's step."""

from __future__ import annotations

import numpy as np
import torch

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.cuda.attention import DecodeRows, decode_rows, plan_attention
from manylora.server.kernels.cuda.layers.fused import FusedLayers, FusedWork
from manylora.server.kernels.cuda.layers.row_mixes import RowMixes, Takes, no_mixes, row_mixes
from manylora.server.kernels.cuda.lora import TiledPages
from manylora.server.kernels.cuda.mixes import no_tables
from manylora.server.kernels.cuda.prompts import plan_chunks
from manylora.server.kernels.cuda.replay.mix_buffers import MAX_RANK
from manylora.server.kernels.cuda.replay.replayed import StepBuffers, Variant
from manylora.server.kernels.inputs import StepInputs
from manylora.server.kernels.reference.attention import AttentionPlan
from manylora.server.kernels.reference.step import ReferenceStep, bend, target_shapes


class FusedStep:
    """Runs the steps whose adapters ``takes`` takes."""

    def __init__(self, reference: ReferenceStep, pool: torch.Tensor, *, fixed: bool = False) -> None:
        """``fixed``: every row goes the way of prompts, through kernels that are the same for any others."""
        weights = reference.weights
        self.takes = Takes(weights)
        self._reference = reference
        self._pool = pool
        self._fixed = fixed
        self._layers = FusedLayers(weights, target_shapes(weights), fixed=fixed)
        self._nothing = no_tables(self.takes.modules, pool.device) if fixed else None

    def step(self, inputs: StepInputs) -> torch.Tensor:
        """As :meth:`ReferenceStep.step`."""
        reference, device = self._reference, self._pool.device
        x = reference.embedded(inputs)
        mixes = row_mixes(self._pool, inputs, self.takes.modules, self.takes, grouped=not self._fixed)
        if mixes is None:
            mixes = self._without(len(x))
        work = FusedWork(
            sent(inputs.positions, device), sent(inputs.slots, device), self._attention(inputs), mixes
        )
        layers, norm = reference.layers_of(inputs.merged)
        hidden = self._layers.run(layers, reference.cache, x, work)
        rows = sent(inputs.logits_rows, device)
        return reference.logits_of(self._layers.final(hidden, norm, mixes, rows), inputs)

    def _attention(self, inputs: StepInputs) -> DecodeRows | AttentionPlan:
        if self._fixed:
            return plan_chunks(inputs, self._pool.device)
        single = np.flatnonzero(np.diff(inputs.query_start) == 1)
        if len(single) < len(inputs.context):
            return plan_attention(inputs, self._pool.device)
        return decode_rows(inputs, single, self._pool.device)

    def _without(self, rows: int) -> RowMixes | None:
        """The mixes of a step of the base."""
        return None if self._nothing is None else no_mixes(self._pool, self._nothing, rows)

    def replayed(self, buffers: StepBuffers, variant: Variant) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits [R, V] that are wanted of the rows in ``buffers``, and what the head was applied to."""
        reference = self._reference
        mixes = self._mixes(buffers, variant.scaled) if variant.adapted else self._without(len(buffers.slots))
        work = FusedWork(buffers.positions, buffers.slots, buffers.attention, mixes)
        x = embedded(reference, buffers, variant)
        hidden = self._layers.run(reference.layers, reference.cache, x, work)
        return headed(reference, self._layers.final(hidden, reference.final_norm, mixes, buffers.logits_rows))

    def _mixes(self, buffers: StepBuffers, scaled: bool) -> RowMixes:
        pool, tables, tiles = self._pool, buffers.mixes.tables, buffers.tiles
        tiled = None if tiles is None else TiledPages(pool, tables, MAX_RANK, tiles, vectors=True)
        return RowMixes(pool, tables, buffers.sequences, buffers.groups, MAX_RANK, tiled, scaled)


def embedded(reference: ReferenceStep, buffers: StepBuffers, variant: Variant) -> torch.Tensor:
    """What enters the first layer [T, D], of the rows in ``buffers``."""
    x = reference.embed(buffers.token_ids)
    return buffers.given.put(x) if variant.embedded else x


def headed(reference: ReferenceStep, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits [R, V] of ``hidden`` [R, D], and that."""
    return bend(reference.lm_head(hidden), reference.weights), hidden
