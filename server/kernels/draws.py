"""How the next token of each row is drawn, shared by every kernel backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from manylora.server.kernels.inputs import Float32, Int64

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Draws:
    """One token for each of n rows of V logits. What a row gets depends on that row alone.

    The tokens of a row stand in falling order of their logits, equal ones in the order of their ids. Of
    these are kept: the first ``top_k``; the first whose probabilities, at the temperature, reach the share
    ``top_p`` of what that left; those with at least ``min_p`` times the first one's probability. The token
    drawn is the one at which the probabilities of what is kept, summed in that order, pass the share
    ``uniform``; where everything is kept they are summed in the order of ids. No token of probability 0 is
    drawn.
    """

    logits: torch.Tensor  # [n, V], left as they are
    temperature: Float32  # [n] 0: the likeliest token, the first of equal ones
    top_k: Int64  # [n] 0, or V and more: all
    top_p: Float64  # [n] 1: all
    min_p: Float32  # [n] 0: all
    uniform: Float64  # [n] in [0, 1)
    replaced: Mapping[int, torch.Tensor] = field(default_factory=dict)  # row -> [V] float32 in its place


Draw = Callable[[Draws], list[int]]  # the token id of each row
