"""A decoder in Triton on a CUDA device, its decode steps and small chunks of prompts replayed as graphs."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import triton

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.capturing import Capturing
from manylora.server.kernels.cuda import drawing
from manylora.server.kernels.cuda.attention import plan_attention
from manylora.server.kernels.cuda.coded.products import CodedProduct
from manylora.server.kernels.cuda.layers.fused import FusedLayers
from manylora.server.kernels.cuda.layers.step import FusedStep, embedded, headed
from manylora.server.kernels.cuda.lora import RankPages, TritonLoraPlan
from manylora.server.kernels.cuda.replay.buckets import MAX_CHUNK_ROWS, MAX_ROWS, Bucket, ChunkBucket
from manylora.server.kernels.cuda.replay.captured import Captured
from manylora.server.kernels.cuda.replay.chunks import ChunkBuffers, chunk_bucket_of
from manylora.server.kernels.cuda.replay.decode import DecodeBuffers, bucket_of
from manylora.server.kernels.cuda.replay.graphs import CudaGraphs
from manylora.server.kernels.cuda.replay.mix_buffers import MAX_RANK, PlainAdapters
from manylora.server.kernels.cuda.replay.replayed import ReplayedSteps, Variant
from manylora.server.kernels.cuda.splitting import part_of
from manylora.server.kernels.cuda.trial import told, trial
from manylora.server.kernels.cuda.weights_of_reference import WeightsOfReference
from manylora.server.kernels.inputs import StepInputs
from manylora.server.kernels.reference.attention import AttentionPlan
from manylora.server.kernels.reference.step import ReferenceStep, target_shapes
from manylora.server.kernels.weights import DecoderWeights


class TritonStep(WeightsOfReference):
    """Runs steps on a CUDA device. The reference step does what has no kernel, and owns the KV cache."""

    name = "triton"
    draw = staticmethod(drawing.draw)

    def __init__(self, weights: DecoderWeights, pool: torch.Tensor, num_blocks: int) -> None:
        self.reference = ReferenceStep(
            weights, pool, num_blocks, attention=plan_attention, lora_plan=TritonLoraPlan
        )
        self._pool = pool
        self._shapes = target_shapes(weights)
        self._fused = FusedStep(self.reference, pool) if FusedLayers.unsupported(weights) is None else None
        embedding = weights.embedding
        on_gpu = embedding.device.type == "cuda" and not weights.waits
        with torch.inference_mode():
            # Both kinds of steps return theirs there: what the first returned is copied before the second.
            logits = embedding.new_empty(MAX_ROWS, weights.vocab_size)
            hidden = embedding.new_empty(MAX_ROWS, embedding.shape[1])
        graphs, modules = CudaGraphs() if on_gpu else None, weights.norm_modules(len(weights.layers)).stop
        takes = PlainAdapters() if self._fused is None else self._fused.takes
        self.decode_steps = ReplayedSteps[Bucket, DecodeBuffers](
            partial(bucket_of, takes=takes),
            partial(DecodeBuffers, modules=modules, like=hidden),
            self.decode,
            takes,
            logits=logits,
            hidden=hidden,
            graphs=graphs,
        )
        self.chunk_steps: ReplayedSteps[ChunkBucket, ChunkBuffers] | None = None
        chunk_rows = _chunk_rows(weights)
        if self._fused is not None and chunk_rows:
            self.chunk_steps = ReplayedSteps(
                partial(chunk_bucket_of, takes=takes, most=chunk_rows),
                partial(ChunkBuffers, modules=modules, like=hidden),
                self.chunks,
                takes,
                logits=logits,
                hidden=hidden,
                graphs=graphs,
            )
        self._captured = None if graphs is None else Captured(graphs, chunk_rows if self.chunk_steps else 0)

    @staticmethod
    def unsupported(weights: DecoderWeights) -> str | None:
        """Why these weights can't run here, in one phrase; None if they can. Compiles the kernels."""
        try:
            trial(weights)
        except Exception as error:  # of Triton, of its compilers, of the driver: there is no common base
            return told(error)
        return None

    @property
    def capturing(self) -> Capturing | None:
        """What captures steps; None where each is launched anew."""
        return self._captured

    @staticmethod
    def origin() -> str:
        """Where the kernels come from, in one phrase."""
        return f"Triton {triton.__version__}"

    @torch.inference_mode()
    def step(self, inputs: StepInputs) -> torch.Tensor:
        """Run one step and return the logits [R, V] of ``inputs.logits_rows``.

        With ``inputs.raw_logits`` they are the head's product alone, which the caller corrects and then gives
        to :func:`bend`.
        """
        bent = inputs.raw_logits and self.reference.weights.bends_logits
        logits = None if bent else self.decode_steps.step(inputs)
        if logits is None:
            logits = self._divided(inputs)
        if logits is None and not bent:
            logits = self._replayed_chunks(inputs)
        return self.launched(inputs) if logits is None else logits

    def _replayed_chunks(self, inputs: StepInputs) -> torch.Tensor | None:
        return None if self.chunk_steps is None else self.chunk_steps.step(inputs)

    def _divided(self, inputs: StepInputs) -> torch.Tensor | None:
        """The logits of a step that is two: decode rows, which are replayed, and chunks; else None."""
        counts = np.diff(inputs.query_start)
        single, several = np.flatnonzero(counts == 1), np.flatnonzero(counts > 1)
        given = (inputs.embedded, inputs.hidden, inputs.merged)
        if not len(single) or not len(several) or inputs.cached or any(g is not None for g in given):
            return None
        decoding, chunks = part_of(inputs, single), part_of(inputs, several)
        first = self.decode_steps.step(decoding.inputs)
        if first is None:
            return None
        logits = first.new_empty(len(inputs.logits_rows), first.shape[1])
        logits[sent(decoding.logits, first.device)] = first
        second = self._replayed_chunks(chunks.inputs)
        if second is None:
            second = self.launched(chunks.inputs)
        logits[sent(chunks.logits, first.device)] = second
        return logits

    def launched(self, inputs: StepInputs) -> torch.Tensor:
        """The logits of a step, launched operation by operation."""
        if self._fused is not None and self._fused.takes.all_of(inputs.lora):
            return self._fused.step(inputs)
        return self.reference.step(inputs)

    def decode(self, buffers: DecodeBuffers, variant: Variant) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits [N, V] of the rows in ``buffers``, and what the head was applied to [N, D]."""
        if self._fused is not None:
            return self._fused.replayed(buffers, variant)
        x = embedded(self.reference, buffers, variant)
        plan, tables = AttentionPlan(buffers.slots, [buffers.attention]), buffers.mixes.tables
        assert buffers.groups is not None
        pages = RankPages(self._pool, self._shapes, tables, MAX_RANK, buffers.groups)
        lora = pages if variant.adapted else None
        return headed(self.reference, self.reference.decode(x, buffers.positions, plan, lora))

    def chunks(self, buffers: ChunkBuffers, variant: Variant) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`decode`, of the wanted rows of the chunks in ``buffers``."""
        assert self._fused is not None
        return self._fused.replayed(buffers, variant)


def _chunk_rows(weights: DecoderWeights) -> int:
    """Rows of the largest step of chunks that is replayed; 0: none is."""
    if weights.waits:
        return 0
    # Beyond that many a matrix in few bits is unpacked, which takes time and memory that a graph would keep.
    return CodedProduct.most_rows if weights.quantized else MAX_CHUNK_ROWS
