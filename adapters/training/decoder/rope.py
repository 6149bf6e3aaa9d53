"""Rotary positions (https://arxiv.org/abs/2104.09864): halves of a head turned against each other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Angles:
    """Cosines and sines of every token's position, scaled as the model's kind of rope says."""

    cos: Tensor  # [tokens, 1, head / 2]
    sin: Tensor


def rotate(heads: Tensor, angles: Angles) -> Tensor:
    """``heads`` [tokens, heads, width] turned forward by their positions."""
    return _turn(heads, angles, 1.0)


def rotate_back(grad: Tensor, angles: Angles) -> Tensor:
    """The gradient of what was turned: a turn backward."""
    return _turn(grad, angles, -1.0)


def _turn(heads: Tensor, angles: Angles, sign: float) -> Tensor:
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    turned = heads.new_empty(heads.shape)
    turned[..., :half] = (first * angles.cos).addcmul_(second, angles.sin, value=-sign)
    turned[..., half:] = (second * angles.cos).addcmul_(first, angles.sin, value=sign)
    return turned
