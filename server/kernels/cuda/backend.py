"""The reference step with adapters and decode attention in Triton, its decode steps replayed as graphs."""

from __future__ import annotations

import torch
import triton

from manylora.server.kernels.capturing import Capturing
from manylora.server.kernels.cuda.attention import decode_rows
from manylora.server.kernels.cuda.buckets import MAX_ROWS
from manylora.server.kernels.cuda.decode import MAX_RANK, DecodeBuffers, DecodeSteps
from manylora.server.kernels.cuda.graphs import CudaGraphs
from manylora.server.kernels.cuda.lora import RankPages, TritonLoraPlan
from manylora.server.kernels.cuda.trial import trial
from manylora.server.kernels.inputs import StepInputs
from manylora.server.kernels.reference.attention import AttentionPlan
from manylora.server.kernels.reference.step import ReferenceStep, target_shapes
from manylora.server.kernels.weights import DecoderWeights, MergedWeights


class TritonStep:
    """Runs steps on a CUDA device. The reference step does what has no kernel, and owns the KV cache."""

    name = "triton"
    draw = staticmethod(ReferenceStep.draw)
    kv_bytes_per_block = staticmethod(ReferenceStep.kv_bytes_per_block)

    def __init__(self, weights: DecoderWeights, pool: torch.Tensor, num_blocks: int) -> None:
        self._reference = ReferenceStep(
            weights, pool, num_blocks, decode_rows=decode_rows, lora_plan=TritonLoraPlan
        )
        self._pool = pool
        self._shapes = target_shapes(weights)
        embedding = weights.embedding
        # The layers of a quantized base are another library's: whether they can be captured is not known.
        # Which experts run is known on the host only.
        on_gpu = embedding.device.type == "cuda" and not weights.quantized and not weights.routed
        with torch.inference_mode():
            logits = embedding.new_empty(MAX_ROWS, weights.lm_head.shape[0])
        graphs = CudaGraphs() if on_gpu else None
        self.decode_steps = DecodeSteps(self.decode, len(self._shapes), logits, graphs)

    @staticmethod
    def unsupported(weights: DecoderWeights) -> str | None:
        """Why these weights can't run here, in one phrase; None if they can. Compiles the kernels."""
        try:
            trial(weights)
        except Exception as error:  # of Triton, of its compilers, of the driver: there is no common base
            return f"Triton's kernels don't run here: {type(error).__name__}: {' '.join(str(error).split())}"
        return None

    @property
    def capturing(self) -> Capturing | None:
        """What captures decode steps; None where each is launched anew."""
        return None if self.decode_steps.graphs is None else self.decode_steps

    @staticmethod
    def origin() -> str:
        """Where the kernels come from, in one phrase."""
        return f"Triton {triton.__version__}"

    @property
    def weight_bytes(self) -> int:
        """Bytes the weights take, norms and biases aside."""
        return self._reference.weight_bytes

    def weight(self, module: int) -> torch.Tensor:
        """W [out, in] of a LoRA target module, as it was given."""
        return self._reference.weight(module)

    def merged(self) -> MergedWeights:
        """Weights to run with instead of the base's; so far they are the base's."""
        return self._reference.merged()

    @torch.inference_mode()
    def step(self, inputs: StepInputs) -> torch.Tensor:
        """Run one step and return the logits [R, V] of ``inputs.logits_rows``."""
        logits = self.decode_steps.step(inputs)
        return self._reference.step(inputs) if logits is None else logits

    def decode(self, buffers: DecodeBuffers, adapted: bool) -> torch.Tensor:
        """The logits [N, V] of the rows in ``buffers``, with adapters or without."""
        plan = AttentionPlan(buffers.slots, [buffers.attention])
        pages = RankPages(self._pool, self._shapes, buffers.tables, MAX_RANK, rows=buffers.work, tiles=None)
        return self._reference.decode(buffers.token_ids, buffers.positions, plan, pages if adapted else None)
