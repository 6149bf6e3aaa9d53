"""A decoder in Triton whose rows have the same bits in any company, however their prompts were cut.

Every row goes one way, that of prompts: it reads its context in pieces that begin at fixed positions, meets
adapters in tiles of one shape, and matrices in one kernel whose sums don't depend on how many rows there are.
So a token has the same bits whether it was decoded, or is computed anew as a part of a prompt. What can't go
that way is refused, and never takes another.
"""

from __future__ import annotations

from functools import partial

import torch
import triton

from manylora.server.kernels.capturing import Capturing
from manylora.server.kernels.cuda.fixed import drawing, products
from manylora.server.kernels.cuda.fixed.buckets import FixedBucket, fixed_bucket_of
from manylora.server.kernels.cuda.fixed.captured import FixedCaptured
from manylora.server.kernels.cuda.fixed.products import FixedLinear, unsupported_codes, with_fixed_codes
from manylora.server.kernels.cuda.layers.fused import FusedLayers
from manylora.server.kernels.cuda.layers.step import FusedStep
from manylora.server.kernels.cuda.prompts import plan_chunks
from manylora.server.kernels.cuda.replay.buckets import MAX_ROWS
from manylora.server.kernels.cuda.replay.chunks import ChunkBuffers
from manylora.server.kernels.cuda.replay.graphs import CudaGraphs
from manylora.server.kernels.cuda.replay.replayed import ReplayedSteps
from manylora.server.kernels.cuda.trial import told, trial
from manylora.server.kernels.cuda.weights_of_reference import WeightsOfReference
from manylora.server.kernels.inputs import StepInputs
from manylora.server.kernels.reference.step import ReferenceStep
from manylora.server.kernels.weights import DecoderWeights


class FixedStep(WeightsOfReference):
    """Runs steps on a CUDA device, of adapters that the fused layers take."""

    name = "triton-deterministic"
    draw = staticmethod(drawing.draw)
    multiply = staticmethod(products.multiply)

    def __init__(self, weights: DecoderWeights, pool: torch.Tensor, num_blocks: int) -> None:
        """Of weights that are not :meth:`unsupported`."""
        self.reference = ReferenceStep(
            with_fixed_codes(weights), pool, num_blocks, attention=plan_chunks, dense=FixedLinear
        )
        self.fused = FusedStep(self.reference, pool, fixed=True)
        embedding, takes = weights.embedding, self.fused.takes
        with torch.inference_mode():
            logits = embedding.new_empty(MAX_ROWS, weights.vocab_size)
            hidden = embedding.new_empty(MAX_ROWS, embedding.shape[1])
        graphs = CudaGraphs() if embedding.device.type == "cuda" else None
        self.steps = ReplayedSteps[FixedBucket, ChunkBuffers](
            partial(fixed_bucket_of, takes=takes),
            partial(ChunkBuffers, modules=takes.modules, like=hidden),
            self.fused.replayed,
            takes,
            logits=logits,
            hidden=hidden,
            graphs=graphs,
        )
        self._captured = None if graphs is None else FixedCaptured(graphs)

    @classmethod
    def unsupported(cls, weights: DecoderWeights) -> str | None:
        """Why these weights can't run here, in one phrase; None if they can. Compiles the kernels."""
        if weights.ranks is not None:
            return "ranks sum over the network, in an order that is not ours"
        if (odd := FusedLayers.unsupported(weights)) is not None:
            return f"the decoder has {odd}, which run in PyTorch's layers"
        if (odd := unsupported_codes(weights)) is not None:
            return odd
        try:
            trial(weights, lambda *made: cls(*made).fused.step)
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
        return f"Triton {triton.__version__}, --deterministic"

    @torch.inference_mode()
    def step(self, inputs: StepInputs) -> torch.Tensor:
        """Run one step and return the logits [R, V] of ``inputs.logits_rows``.

        With ``inputs.raw_logits`` they are the head's product alone, which the caller corrects and then gives
        to :func:`bend`.

        Raises:
            ValueError: an adapter is not taken; nothing was run.
        """
        if not self.fused.takes.all_of(inputs.lora):
            raise ValueError(
                "an adapter of the step has parts that can't be computed in one way for all rows"
            )
        bent = inputs.raw_logits and self.reference.weights.bends_logits
        logits = None if bent else self.steps.step(inputs)
        return self.fused.step(inputs) if logits is None else logits
