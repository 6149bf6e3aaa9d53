"""What DoRA multiplies outputs of a layer by: the learned magnitude of each over the norm of its weights.

The weights of an output are a row of W + s B A. Its norm follows from three sums, so that no matrix of the
size of W is formed: |W|^2, known from the start, 2 W . s B A, which is a thin product, and |s B A|^2.
As in PEFT and in section 4.3 of the paper (https://arxiv.org/abs/2402.09353) it counts as a constant in the
backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Gains:
    """Of one adapter for a group of layers; 1 for outputs of layers that it leaves alone."""

    gain: Tensor  # [out] float32: magnitude / norm
    norm: Tensor  # [out] float32: of the rows of W + s B A
    is_invertible: bool  # whether no gain is 0, so that outputs tell what they were before


def gains_of(
    weight: Tensor, squares: Tensor, a: Tensor, b: Tensor, magnitudes: Sequence[tuple[slice, Tensor]]
) -> Gains:
    """The gains of W + B A.

    Args:
        weight: W [out, in], in the base's dtype.
        squares: [out] float32: squared norms of its rows.
        a: [ranks, in] float32; b: [out, ranks] float32, scaled.
        magnitudes: outputs of a layer, and their magnitudes in float32; other outputs keep a gain of 1.
    """
    across = (weight @ a.to(weight.dtype).T).float().mul_(b).sum(1)
    own = (b @ (a @ a.T)).mul_(b).sum(1)
    norm = across.mul_(2).add_(own).add_(squares).clamp_(min=0).sqrt_()
    gain = torch.ones_like(norm)
    for outputs, magnitude in magnitudes:
        gain[outputs] = magnitude / norm[outputs]
    return Gains(gain, norm, bool(gain.all()))


def gradient_by_inputs(grad: Tensor, before: Tensor, gains: Gains) -> Tensor:
    """The gradient of the magnitudes: [out] float32.

    Args:
        grad: [tokens, out]: that of the outputs.
        before: [tokens, out]: the outputs before they were multiplied, without bias.
    """
    return (grad * before).sum(0, dtype=torch.float32).div_(gains.norm)


def gradient_by_outputs(grad: Tensor, outputs: Tensor, gains: Gains) -> Tensor:
    """As :func:`gradient_by_inputs`, from what was multiplied; gains must be invertible."""
    return (grad * outputs).sum(0, dtype=torch.float32).div_(gains.gain * gains.norm)
