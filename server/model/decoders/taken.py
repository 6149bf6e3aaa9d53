"""Which adapters a decoder takes that computes every row in one way, on an accelerator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.faults import some
from manylora.server.kernels.inputs import VectorPages
from manylora.server.kernels.weights import DecoderWeights

_ODD = {
    "change": "whole weights",
    "partner": "outputs by each other",
    "input_blocks": "inputs by each other",
    "input_gain": "the scale of inputs",
}


class TakenAdapters:
    """Those whose parts the fused layers compute; see ``kernels/cuda/layers/row_mixes.py``.

    That is everything but changes of whole weights, exchanged outputs, mixed inputs, and the scaling of the
    inputs of other modules than an MLP's last.
    """

    def __init__(self, weights: DecoderWeights, modules: Sequence[TargetModule]) -> None:
        """``modules`` in the numbering of ``weights``."""
        self._modules = modules
        names = [layer.matrices for layer in weights.layers]
        self._scalable = {weights.modules_of(i, "down")[0] for i, own in enumerate(names) if "down" in own}

    def scales_inputs(self, module: int) -> bool:
        """Whether it takes adapters that scale the inputs of that module."""
        return module in self._scalable

    def check(self, vectors: VectorPages | None) -> None:
        """Refuse an adapter that is not taken; ``vectors`` are -1 where it has none.

        Raises:
            ArtifactError: says what of it is not, and where.
        """
        if vectors is None:
            return
        faults = []
        for kind, what in _ODD.items():
            found = [int(m) for m in np.flatnonzero(getattr(vectors, kind) >= 0)]
            odd = [self._modules[m].name for m in found if kind != "input_gain" or not self.scales_inputs(m)]
            if odd:
                faults.append(
                    f"--deterministic on a GPU takes no adapter that changes {what} ({some(odd, len(odd))})"
                )
        if faults:
            raise ArtifactError(faults)
