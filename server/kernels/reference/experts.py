"""The MLPs of which every row takes a few, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from manylora.server.kernels.reference.expert_lora import ExpertDelta
from manylora.server.kernels.reference.linear import PackedLinear
from manylora.server.kernels.weights import GELU_TANH, DecoderWeights, Experts


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
        self._gate_up = [PackedLinear(weight, None) for weight in experts.gate_up]
        self._down = [PackedLinear(weight, None) for weight in experts.down]
        self._chosen = weights.chosen_experts
        self._normalized = weights.normalized_shares
        self._activation = weights.activation

    @property
    def nbytes(self) -> int:
        """Bytes of their weights and the router's."""
        return self._router.nbytes + sum(matrix.nbytes for matrix in (*self._gate_up, *self._down))

    def __call__(self, x: torch.Tensor, delta: ExpertDelta | None) -> torch.Tensor:
        """The sum of the outputs of each row's experts, by their shares: [T, D] -> [T, D]."""
        shares, chosen = F.linear(x, self._router).softmax(-1, dtype=torch.float32).topk(self._chosen)
        if self._normalized:
            shares = shares / shares.sum(-1, keepdim=True)
        total = torch.zeros_like(x, dtype=torch.float32)
        for expert in chosen.unique().tolist():
            rows, place = torch.where(chosen == expert)
            gate_up = self._gate_up[expert](x[rows])
            if delta is not None:
                delta.add(self._modules[2 * expert], rows, x[rows], gate_up)
            inner = gated(gate_up, self._activation)
            output = self._down[expert](inner)
            if delta is not None:
                delta.add(self._modules[2 * expert + 1], rows, inner, output)
            total.index_add_(0, rows, output.float() * shares[rows, place, None])
        return total.to(x.dtype)
