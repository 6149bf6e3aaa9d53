"""What adapters make of one weight of the base, in float32, where the base's weights are."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from manylora.adapters.format.weights.delta import ModuleDelta

Deltas = tuple[tuple[ModuleDelta, float], ...]  # to one weight, each with its weight in the mix


def merged_weight(weight: torch.Tensor, deltas: Iterable[tuple[ModuleDelta, float]]) -> torch.Tensor:
    """``W + Σ w_k ΔW_k`` [out, in] float32, from the base's ``weight`` [out, in] and (delta, weight) pairs.

    ΔW_k is what the adapter alone makes of W, less W: ``s B A`` of a LoRA, with DoRA's and IA3's factors
    applied where there are any. Of a norm W is its weight [D], and ΔW_k the difference of the adapter's.
    """
    base = weight.float()
    result = base.clone()
    for delta, factor in deltas:
        if base.dim() == 1:
            if delta.scale is not None:
                result.add_(delta.scale.to(base) - base, alpha=factor)
        elif _is_plain(delta):
            a, b = delta.factors(weight)
            result.addmm_(b.to(result), a.to(result), alpha=factor)
        else:
            result.add_(_alone(base, delta) - base, alpha=factor)
    return result


def merged_bias(
    bias: torch.Tensor | None, deltas: Iterable[tuple[ModuleDelta, float]], weight: torch.Tensor | None = None
) -> torch.Tensor | None:
    """``b + Σ w_k Δb_k`` [out] float32; None where neither the base nor an adapter has a bias.

    The base's ``weight`` [out, in] is needed where a delta shifts the bias, and where the base has no bias
    and is not on the CPU: the result lies where the base does.
    """
    parts = list(deltas)
    if bias is None and not any(_touches_bias(delta) for delta, _ in parts):
        return None
    outputs, device = parts[0][0].b.shape[0], None if weight is None else weight.device
    base = torch.zeros(outputs, device=device) if bias is None else bias.float()
    result = base.clone()
    for delta, factor in parts:
        alone = base if delta.bias is None else delta.bias.to(base)
        if delta.output_scale is not None:
            alone = alone * delta.output_scale.to(base)
        if delta.b_bias is not None:
            alone = alone + delta.scaling * delta.b_bias.to(base)
        if delta.shifts:
            alone = alone + delta.shift(weight, bias).to(base)
        result.add_(alone - base, alpha=factor)
    return result


def _alone(base: torch.Tensor, delta: ModuleDelta) -> torch.Tensor:
    """The weight that the adapter alone amounts to."""
    a, b = delta.factors(base)
    change = b.to(base) @ a.to(base)
    scaled = base if delta.input_scale is None else base * delta.input_scale.to(base)
    result = scaled + change
    if delta.magnitude is not None:
        # As in PEFT the norm is of W + s B A, which is what was trained.
        norm = (base + change).norm(dim=1)
        result = result * (delta.magnitude.to(base) / norm)[:, None]
    return result if delta.output_scale is None else result * delta.output_scale.to(base)[:, None]


def _is_plain(delta: ModuleDelta) -> bool:
    return delta.magnitude is None and delta.output_scale is None and delta.input_scale is None


def _touches_bias(delta: ModuleDelta) -> bool:
    return delta.shifts or delta.bias is not None or delta.b_bias is not None
