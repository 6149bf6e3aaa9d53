"""From what an adapter says about a module to what the kernels add: all that can be is folded in once.

An adapter alone computes what :class:`ModuleDelta` says; the kernels compute what :class:`AdapterPages`
says. With g = magnitude / ‖W + B' A‖ the two are the same for

    rank pages  A and g ⊙ l_out ⊙ B'
    input       Q of updates that mix inputs in blocks, where those are small
    partner     π of updates that pair outputs, of which γ is u − 1 then
    change      ΔW of an update, where it takes less room than its factors
    gain        γ = g ⊙ l_out − 1
    constant    c = b' − b − (g − 1) ⊙ b + s b_B + what an update adds to outputs

A gain applies to the base's output with its bias b, of which DoRA's constant then takes the part away
that is too much; IA3 scales the bias as well and needs no constant. The gain of a norm applies to what it
normalized, before its own weight, so it is w' − w, whatever w is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.update import InputBlocks, NoUpdate, Paired
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.server.kernels.inputs import PAGE_ALIGN, BaseWeights, page_length
from manylora.server.model.pages.norms import row_norms


class ZeroNorm(Exception):
    """A row of W + B' A is zero, so that DoRA's gain has no value there."""


@dataclass(frozen=True)
class FoldedModule:
    """One module's part of the pool, before it is rounded to the pool's dtype."""

    a: torch.Tensor  # [r, in]
    b: torch.Tensor  # [r, out] float32
    gain: torch.Tensor | None = None  # [out] float32
    constant: torch.Tensor | None = None  # [out] float32
    input_gain: torch.Tensor | None = None  # [in] float32
    change: torch.Tensor | None = None  # [out, in] float32; there are no A and B then
    input_blocks: torch.Tensor | None = None  # [in, b] float32; see VectorPages
    partner: torch.Tensor | None = None  # [out] float32
    distance: int = 0  # of partners


def fold(delta: ModuleDelta, index: int, base: BaseWeights | None) -> FoldedModule:
    """Fold the change to module ``index``.

    ``base`` is needed for DoRA, biases, norms and some updates only.

    Raises:
        ZeroNorm, NoUpdate: see there.
    """
    if isinstance(delta.update, Paired):
        own, partner = delta.update.make()
        _check_finite(own, partner)
        return FoldedModule(
            delta.a, delta.b.T.float(), gain=own - 1, partner=partner, distance=delta.update.distance
        )
    change = blocks = None
    a, low = delta.a, delta.b.float()  # of updates: empty
    if block_size(delta):
        blocks = _blocks(delta)
    elif is_whole(delta):
        change = _change(delta, index, base)
    else:
        a, low = _factors(delta, index, base)
    if not has_vectors(delta):
        return FoldedModule(a, low.T, change=change, input_blocks=blocks)
    scale = None
    if delta.magnitude is not None:
        assert base is not None, "DoRA needs the base's weights"
        scale = _dora_gain(delta.magnitude, row_norms(base.weight(index), delta))
    b = low if scale is None else low * scale[:, None]
    gain = None if scale is None else scale - 1
    if delta.output_scale is not None:
        gain = delta.output_scale.float() - 1
        b = b * delta.output_scale.float()[:, None]
    if delta.scale is not None:
        assert base is not None, "a norm's weight is compared with the base's"
        gain = delta.scale.float() - base.weight(index).float().cpu()
    return FoldedModule(
        a=a,
        b=b.T,
        gain=gain,
        constant=_constant(delta, scale, index, base),
        input_gain=None if delta.input_scale is None else delta.input_scale.float() - 1,
        change=change,
        input_blocks=blocks,
    )


def block_size(delta: ModuleDelta) -> int:
    """b of the module's Q, for updates that mix inputs in blocks; 0 where Q is no smaller than half of ΔW."""
    if not isinstance(delta.update, InputBlocks):
        return 0
    size = math.lcm(delta.update.size, PAGE_ALIGN)
    return size if 2 * size <= delta.b.shape[0] else 0


def _blocks(delta: ModuleDelta) -> torch.Tensor:
    """Q [in, b], each block of the update's at its place in one of the larger ones."""
    assert isinstance(delta.update, InputBlocks), "other updates have no blocks"
    blocks, b = delta.update.make(), block_size(delta)
    _check_finite(blocks)
    count, size, _ = blocks.shape
    group = b // size
    wide = torch.zeros(count, size, group, size)
    wide[torch.arange(count), :, torch.arange(count) % group] = blocks
    return wide.view(count * size, b)


def is_whole(delta: ModuleDelta) -> bool:
    """Whether the change of the weight lies in the pool as a matrix, which is smaller than its factors.

    Only an update's may: LoRA's is what A and B make of it, rounded one by one.
    """
    if delta.update is None or isinstance(delta.update, Paired) or block_size(delta):
        return False
    width_in, width_out = page_length(delta.a.shape[1]), page_length(delta.b.shape[0])
    return delta.rank * (width_in + width_out) > delta.b.shape[0] * width_in


def _factors(delta: ModuleDelta, index: int, base: BaseWeights | None) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, in] and B' [out, r], checked where they are not what the file holds."""
    if delta.update is None:
        return delta.factors()
    a, b = delta.factors(_weight(delta, index, base))
    _check_finite(a, b)
    return a, b


def _change(delta: ModuleDelta, index: int, base: BaseWeights | None) -> torch.Tensor:
    """ΔW [out, in] of an update."""
    assert delta.update is not None, "only updates are stored as a whole"
    change = delta.update.change(_weight(delta, index, base))
    _check_finite(change)
    return change


def _check_finite(*parts: torch.Tensor) -> None:
    if not all(bool(part.isfinite().all()) for part in parts):
        raise NoUpdate("the change of the weight is not finite")


def _weight(delta: ModuleDelta, index: int, base: BaseWeights | None) -> torch.Tensor | None:
    """W of the base, where the update needs it."""
    assert base is not None or not delta.needs_weight, "the update needs the base's weights"
    return base.weight(index) if base is not None and delta.needs_weight else None


def has_vectors(delta: ModuleDelta) -> bool:
    """Whether the change is more than A and B."""
    parts = (delta.magnitude, delta.b_bias, delta.bias, delta.output_scale, delta.input_scale, delta.scale)
    return delta.shifts or any(part is not None for part in parts)


def elements(delta: ModuleDelta, module: TargetModule, index: int, base: BaseWeights | None) -> int:
    """Elements of the pool that :func:`fold`'s result takes."""
    width_in, width_out = page_length(module.in_features), page_length(module.out_features)
    if isinstance(delta.update, Paired):
        return 2 * width_out
    matrices = delta.rank * (width_in + width_out)
    if size := block_size(delta):
        matrices = module.in_features * size
    elif is_whole(delta):
        matrices = module.out_features * width_in
    if not has_vectors(delta):
        return matrices
    gain = any(part is not None for part in (delta.magnitude, delta.output_scale, delta.scale))
    constant = delta.shifts or delta.bias is not None or delta.b_bias is not None
    constant = constant or (delta.magnitude is not None and _bias(index, base) is not None)
    return matrices + width_out * (gain + constant) + width_in * (delta.input_scale is not None)


def _dora_gain(magnitude: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """The gain g [out] that DoRA puts on the outputs."""
    gain = magnitude.float() / norms
    if not bool(gain.isfinite().all()):
        raise ZeroNorm
    return gain


def _bias(index: int, base: BaseWeights | None) -> torch.Tensor | None:
    bias = None if base is None else base.bias(index)
    return None if bias is None else bias.float().cpu()


def _constant(
    delta: ModuleDelta, scale: torch.Tensor | None, index: int, base: BaseWeights | None
) -> torch.Tensor | None:
    """c [out]; None where it is zero whatever the values are."""
    parts, base_bias = [], _bias(index, base)
    if delta.bias is not None:
        assert base_bias is not None, "only a bias that the base has can be replaced"
        parts.append(delta.bias.float() - base_bias)
    if scale is not None and base_bias is not None:
        parts.append((1 - scale) * base_bias)
    if delta.b_bias is not None:
        parts.append(delta.b_bias.float() * delta.scaling)
    if delta.shifts:
        weight = base.weight(index) if base is not None and delta.needs_weight else None
        parts.append(delta.shift(weight, base_bias))
    return torch.stack(parts).sum(0) if parts else None
