"""How the next token of each row is drawn, shared by every kernel backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from manylora.server.kernels.inputs import Float32, Int32, Int64

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Draws:
    """One token for each of n rows of V logits. What a row gets depends on that row alone.

    Of the tokens of a row that may be drawn, of which there is one at least: they stand in falling order of
    their logits, equal ones in the order of their ids. Of these are kept: the first ``top_k``; the first
    whose probabilities, at the temperature, reach the share ``top_p`` of what that left; those with at least
    ``min_p`` times the first one's probability. The token drawn is the one at which the probabilities of
    what is kept, summed in that order, pass the share ``uniform``; where everything is kept they are summed
    in the order of ids. No token of probability 0 is drawn.
    """

    logits: torch.Tensor  # [n, V], left as they are
    temperature: Float32  # [n] 0: the likeliest token, the first of equal ones
    top_k: Int64  # [n] 0, or V and more: all
    top_p: Float64  # [n] 1: all
    min_p: Float32  # [n] 0: all
    uniform: Float64  # [n] in [0, 1)
    replaced: Mapping[int, torch.Tensor] = field(default_factory=dict)  # row -> [V] float32 in its place
    # row -> words of at least V bits: token t may be drawn if bit t % 32 of word t // 32 is set; no row: all
    allowed: Mapping[int, Int32] = field(default_factory=dict)


Draw = Callable[[Draws], list[int]]  # the token id of each row
