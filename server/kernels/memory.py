"""Allocation of large buffers that are mostly never touched."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros. On the CPU its pages take memory only once they are written.

    torch writes the zeros it allocates; numpy asks the system for pages that are zero already.
    """
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    flat = torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))
    return flat.view(dtype).view(*shape)
