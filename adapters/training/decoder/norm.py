"""RMSNorm and its gradient, in float32 inside (https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x`` [..., width] over its root mean square, times ``weight`` [width]; and 1 / root [..., 1]."""
    wide = x.float()
    inverse = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
    return (wide * inverse).to(x.dtype).mul_(weight), inverse


def normed(x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """What :func:`rms_norm` gave, from the root that it gave."""
    return (x.float() * inverse).to(x.dtype).mul_(weight)


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """The gradient of ``x`` from that of the result; the weight is frozen."""
    wide = (grad * weight).float()
    unit = x * inverse  # float32, and never in place: in float32 x itself would be what is multiplied
    share = torch.linalg.vecdot(wide, unit).div_(x.shape[-1]).unsqueeze(-1)
    return wide.addcmul_(unit, share, value=-1.0).mul_(inverse).to(x.dtype)
