"""The reference step with adapters and decode attention in Triton, its decode steps replayed as graphs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton

from manylora.server.kernels.cuda.attention import decode_rows
from manylora.server.kernels.cuda.decode import MAX_RANK, MAX_ROWS, DecodeBuffers, DecodeSteps
from manylora.server.kernels.cuda.graphs import CudaGraphs
from manylora.server.kernels.cuda.lora import RankPages, TritonLoraPlan
from manylora.server.kernels.cuda.trial import trial
from manylora.server.kernels.inputs import StepInputs
from manylora.server.kernels.reference.attention import AttentionPlan
from manylora.server.kernels.reference.lora import LoraPlanner
from manylora.server.kernels.reference.step import ReferenceStep, target_shapes
from manylora.server.kernels.weights import DecoderWeights


class TritonStep(ReferenceStep):
    """Runs steps on a CUDA device. Owns the KV cache."""

    name = "triton"

    def __init__(self, weights: DecoderWeights, pool: torch.Tensor, num_blocks: int) -> None:
        super().__init__(weights, pool, num_blocks)
        self._pool = pool
        self._shapes = target_shapes(weights)
        self._planner = LoraPlanner(pool, self._shapes, self, TritonLoraPlan)
        self._decode_rows = decode_rows
        embedding = weights.embedding
        # The layers of a quantized base are another library's: whether they can be captured is not known.
        on_gpu = embedding.device.type == "cuda" and not weights.quantized
        with torch.inference_mode():
            logits = embedding.new_empty(MAX_ROWS, weights.lm_head.shape[0])
        graphs = CudaGraphs() if on_gpu else None
        self._decode = DecodeSteps(self._decode_forward, len(self._shapes), logits, graphs)

    @staticmethod
    def unsupported(weights: DecoderWeights) -> str | None:
        """Why these weights can't run here, in one phrase; None if they can. Compiles the kernels."""
        try:
            trial(weights)
        except Exception as error:  # of Triton, of its compilers, of the driver: there is no common base
            return f"Triton's kernels don't run here: {type(error).__name__}: {' '.join(str(error).split())}"
        return None

    @staticmethod
    def origin() -> str:
        """Where the kernels come from, in one phrase."""
        return f"Triton {triton.__version__}"

    @torch.inference_mode()
    def step(self, inputs: StepInputs) -> torch.Tensor:
        logits = self._decode.step(inputs)
        return super().step(inputs) if logits is None else logits

    def _decode_forward(self, buffers: DecodeBuffers, adapted: bool) -> torch.Tensor:
        plan = AttentionPlan(buffers.slots, [buffers.attention])
        pages = RankPages(self._pool, self._shapes, buffers.tables, MAX_RANK, rows=buffers.work, tiles=None)
        work = self._work(buffers.positions, plan, pages if adapted else None)
        x = F.embedding(buffers.token_ids, self._weights.embedding)
        return self._lm_head(self._final(self._run(self._layers, x, work)))
