"""What steps on a CUDA device leave to the reference's step: whose weights and cache they compute with."""

from __future__ import annotations

import torch

from manylora.server.kernels.reference.step import ReferenceStep
from manylora.server.kernels.weights import MergedWeights


class WeightsOfReference:
    """The weights of a step that has a reference."""

    reference: ReferenceStep
    kv_bytes_per_block = staticmethod(ReferenceStep.kv_bytes_per_block)

    @property
    def weight_bytes(self) -> int:
        """Bytes the weights take, norms and biases aside."""
        return self.reference.weight_bytes

    def weight(self, module: int) -> torch.Tensor:
        """W [out, in] of a LoRA target module, as it was given."""
        return self.reference.weight(module)

    def merged(self) -> MergedWeights:
        """Weights to run with instead of the base's; so far they are the base's."""
        return self.reference.merged()
