"""One layer of a decoder in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import torch

from manylora.server.kernels.reference.attention import AttentionPlan, LayerCache, Scoring
from manylora.server.kernels.reference.expert_lora import ExpertDelta
from manylora.server.kernels.reference.experts import RoutedExperts, gated
from manylora.server.kernels.reference.linear import Dense, Linear, PackedLinear, linear
from manylora.server.kernels.reference.lora import LoraDelta
from manylora.server.kernels.reference.vectors import NormChange
from manylora.server.kernels.weights import DecoderWeights, ExpertPlace, LayerWeights


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    change: NormChange | None = None,
    mean: torch.Tensor | None = None,
) -> torch.Tensor:
    """RMSNorm over the last dimension, in fp32, rounded to the weight's dtype and then to that of ``x``.

    The first rounding comes before the weight, as in Hugging Face models. ``change`` is what adapters add in
    some of the rows, the first dimension of ``x``. ``mean`` [..., 1] is that of the squares, where ``x`` is a
    part of what is normalized.
    """
    wide = x.float()
    if mean is None:
        mean = wide.pow(2).mean(-1, keepdim=True)
    normal = (wide * torch.rsqrt(mean + eps)).to(weight.dtype)
    y = (weight * normal).to(x.dtype)
    if change is not None:
        own = normal.index_select(0, change.rows).float()
        y.index_copy_(0, change.rows, (weight.float() * own + change.of(own)).to(y.dtype))
    return y


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of ``x`` [T, h, hd]: halves of its first dimensions, rotated against each other.

    ``cos`` and ``sin`` are [T, 1, n / 2], where n dimensions turn.
    """
    half = cos.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


@dataclass(frozen=True)
class Work:
    """What every layer of one step shares."""

    ropes: Sequence[tuple[torch.Tensor, torch.Tensor]]  # cos and sin of each table, [T, 1, n / 2]
    plan: AttentionPlan
    lora: LoraDelta | None
    experts: ExpertDelta | None = None


class Layer:
    """One block: attention, then the MLP, each added to what comes in."""

    def __init__(
        self, layer: LayerWeights, weights: DecoderWeights, index: int, dense: Dense = PackedLinear
    ) -> None:
        """``layer`` is the one of that ``index``; ``weights`` say what all layers have in common.

        ``dense`` makes the products of matrices that are not quantized, those of experts aside.
        """
        self._weights = weights
        self._ranks = weights.ranks
        self.modules = {
            name: [(module, weights.rows(module)) for module in weights.modules_of(index, name)]
            for name in layer.matrices
        }
        self.norm_modules = dict(zip(layer.norms, weights.norm_modules(index), strict=False))
        self.norms = {name: weights.norm_weight(getattr(layer, name)) for name in layer.norms}
        self.scoring = Scoring(weights.scale, layer.window, weights.score_cap)
        self.matrices: Mapping[str, Linear] = {
            name: linear(getattr(layer, name), getattr(layer, f"{name}_bias"), dense)
            for name in layer.matrices
        }
        self._experts = (
            None
            if layer.experts is None
            else RoutedExperts(layer.experts, weights, weights.expert_modules(index))
        )
        self.source = layer.without_matrices()

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices."""
        experts = 0 if self._experts is None else self._experts.nbytes
        return experts + sum(matrix.nbytes for matrix in self.matrices.values())

    def with_matrix(self, name: str, matrix: Linear) -> Layer:
        """This layer with another matrix under a name of :attr:`matrices`."""
        changed = copy(self)
        changed.matrices = {**self.matrices, name: matrix}
        return changed

    def with_expert(self, place: ExpertPlace, matrix: PackedLinear) -> Layer:
        """This layer with another matrix of one of its experts."""
        assert self._experts is not None
        changed = copy(self)
        changed._experts = self._experts.with_matrix(place, matrix)
        return changed

    def expert_weight(self, place: ExpertPlace) -> torch.Tensor:
        """The matrix [out, in] of one of its experts, as it was given."""
        assert self._experts is not None
        return self._experts.weight(place)

    def with_norm(self, name: str, weight: torch.Tensor) -> Layer:
        """This layer with another weight of a norm, by its name in :class:`LayerWeights`."""
        changed = copy(self)
        changed.norms = {**self.norms, name: self._weights.norm_weight(weight)}
        return changed

    def forward(self, x: torch.Tensor, work: Work, kv: LayerCache) -> torch.Tensor:
        """``x`` [T, D] -> [T, D]."""
        attended = self._attention(self._norm("input_norm", x, work.lora), work, kv)
        x = x + self._scaled(self._norm("attention_norm", attended, work.lora))
        inner = self._mlp(self._norm("post_norm", x, work.lora), work)
        return x + self._scaled(self._norm("mlp_norm", inner, work.lora))

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x if self._weights.residual_scale == 1.0 else x * self._weights.residual_scale

    def _norm(
        self, name: str, x: torch.Tensor, lora: LoraDelta | None, mean: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One of the layer's norms, by its name in :class:`LayerWeights`; ``x`` itself where it has none."""
        if name not in self.norms:
            return x
        change = None if lora is None else lora.norm_change(self.norm_modules[name])
        return rms_norm(x, self.norms[name], self._weights.eps, change, mean)

    def _product(self, name: str, x: torch.Tensor, lora: LoraDelta | None) -> torch.Tensor:
        """One of the layer's matrices with what adapters add to it."""
        y = self.matrices[name](x)
        if lora is not None:
            for module, rows in self.modules[name]:
                lora.add(module, x, y[:, rows])
        return y

    def _summed(self, name: str, x: torch.Tensor, lora: LoraDelta | None) -> torch.Tensor:
        """The product of a matrix of which other ranks have further inputs, where there are ranks."""
        y = self._product(name, x, lora)
        return y if self._ranks is None else self._ranks.sum(y)

    def _attention(self, h: torch.Tensor, work: Work, kv: LayerCache) -> torch.Tensor:
        w = self._weights
        widths = [w.n_heads * w.head_dim, w.n_kv_heads * w.head_dim, w.n_kv_heads * w.head_dim]
        q, k, v = self._product("qkv", h, work.lora).split(widths, dim=-1)
        of_q, of_k = self._means(q, k)
        q, k = self._heads(q, "q_norm", work.lora, of_q), self._heads(k, "k_norm", work.lora, of_k)
        if self.source.rope is not None:
            q, k = (rotate(t, *work.ropes[self.source.rope]) for t in (q, k))
        kv.write(work.plan.slots, k, v.unflatten(-1, (-1, w.head_dim)))
        return self._summed("o", work.plan.attend(kv, q, self.scoring).flatten(1), work.lora)

    def _of_all_heads(self, norm: str) -> bool:
        return norm in self.norms and len(self.norms[norm]) != self._weights.head_dim

    def _means(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The mean squares [T, 1] of queries and keys, where norms of all heads go over several ranks."""
        ranks = self._ranks
        if ranks is None or not self._of_all_heads("q_norm"):
            return None, None
        means = torch.stack([t.float().pow(2).mean(-1, keepdim=True) for t in (q, k)])
        of_q, of_k = ranks.sum(means) / ranks.count
        return of_q, of_k

    def _heads(
        self, x: torch.Tensor, norm: str, lora: LoraDelta | None, mean: torch.Tensor | None
    ) -> torch.Tensor:
        """``x`` [T, h hd] as [T, h, hd], normalized: each head, or all together if the norm is so wide."""
        size = self._weights.head_dim
        if self._of_all_heads(norm):
            x, norm = self._norm(norm, x, lora, mean), ""
        heads = x.view(len(x), -1, size)
        return self._norm(norm, heads, lora) if norm else heads

    def _mlp(self, h: torch.Tensor, work: Work) -> torch.Tensor:
        if self._experts is not None:
            return self._experts(h, work.experts)
        inner = gated(self._product("gate_up", h, work.lora), self._weights.activation)
        return self._summed("down", inner, work.lora)
