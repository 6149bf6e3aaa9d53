"""The MLPs of which every row takes a few, in plain PyTorch."""

from __future__ import annotations

from copy import copy

import torch
import torch.nn.functional as F

from manylora.server.kernels.reference.expert_lora import ExpertDelta
from manylora.server.kernels.reference.linear import PackedLinear
from manylora.server.kernels.weights import GELU_TANH, DecoderWeights, ExpertPlace, Experts


def gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """The product of the activated gate with up: [T, 2 I] -> [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.gelu(gate, approximate="tanh") if activation == GELU_TANH else F.silu(gate)) * up


class RoutedExperts:
    """The experts of one layer."""

    def __init__(self, experts: Experts, weights: DecoderWeights, modules: range) -> None:
        """``modules`` are the numbers that adapters know them by."""
        self._modules = modules
        self._router = experts.router
        both = {"gate_up": experts.gate_up, "down": experts.down}
        self._matrices = {
            name: [PackedLinear(weight, None) for weight in stacked] for name, stacked in both.items()
        }
        self._chosen = weights.chosen_experts
        self._normalized = weights.normalized_shares
        self._activation = weights.activation

    @property
    def nbytes(self) -> int:
        """Bytes of their weights and the router's."""
        return self._router.nbytes + sum(m.nbytes for matrices in self._matrices.values() for m in matrices)

    def weight(self, place: ExpertPlace) -> torch.Tensor:
        """The matrix [out, in] of one of them, as it was given."""
        return self._matrices[place.name][place.number].weight()

    def with_matrix(self, place: ExpertPlace, matrix: PackedLinear) -> RoutedExperts:
        """These experts with another matrix of one of them; the others' are shared."""
        changed = copy(self)
        own = list(self._matrices[place.name])
        own[place.number] = matrix
        changed._matrices = {**self._matrices, place.name: own}
        return changed

    def __call__(self, x: torch.Tensor, delta: ExpertDelta | None) -> torch.Tensor:
        """The sum of the outputs of each row's experts, by their shares: [T, D] -> [T, D]."""
        shares, chosen = F.linear(x, self._router).softmax(-1, dtype=torch.float32).topk(self._chosen)
        if self._normalized:
            shares = shares / shares.sum(-1, keepdim=True)
        total = torch.zeros_like(x, dtype=torch.float32)
        for expert in chosen.unique().tolist():
            rows, place = torch.where(chosen == expert)
            gate_up = self._matrices["gate_up"][expert](x[rows])
            if delta is not None:
                delta.add(self._modules[2 * expert], rows, x[rows], gate_up)
            inner = gated(gate_up, self._activation)
            output = self._matrices["down"][expert](inner)
            if delta is not None:
                delta.add(self._modules[2 * expert + 1], rows, inner, output)
            total.index_add_(0, rows, output.float() * shares[rows, place, None])
        return total.to(x.dtype)
