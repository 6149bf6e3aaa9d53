"""Probabilities and ranks that are exact, and so the same in whatever order a library computes them.

A token's weight is its probability over that of the likeliest one, as a whole number of 2^-44 parts: float32
has no more than 24 bits of it, and what is left out of the sum over a vocabulary is less than one of those.
Libraries sum floating point numbers of a row in an order that may depend on how many rows there are; sums of
whole numbers have no order. Everything else here is computed element by element.
"""

from __future__ import annotations

import torch

_ONE = 2.0**44  # the sum over up to 2^18 tokens is below 2^63


def weights_of(scaled: torch.Tensor) -> torch.Tensor:
    """The weights [n, V] int64 of the tokens of ``scaled`` [n, V] float32, logits over temperatures.

    They are 0 in rows that have no finite largest element.
    """
    shares = (scaled - scaled.amax(-1, keepdim=True)).exp().nan_to_num(nan=0.0)
    return (shares.double() * _ONE).round().long()


def log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [n, V] float32 of ``logits`` [n, V] float32."""
    relative = logits - logits.amax(-1, keepdim=True)
    total = weights_of(logits).sum(-1, keepdim=True).double() / _ONE
    return relative - total.log().float()


def share_of(total: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The share ``uniform`` [n, 1] in [0, 1) of whole numbers ``total`` [n, 1]: a whole number below it."""
    return (uniform * total.double()).long().minimum(total - 1)


def likeliest(scaled: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` likeliest tokens of each row in falling order, equal ones by their ids: values and ids.

    Sorted are whole numbers that hold both: the order of float32 numbers is that of their bits, those of
    negative ones inverted.
    """
    bits = (scaled + 0.0).view(torch.int32)  # -0.0, which is equal to 0.0, becomes it
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    behind = scaled.shape[1] - 1 - torch.arange(scaled.shape[1], device=scaled.device)
    keys = (ordered.long() << 32) | behind
    order = scaled.shape[1] - 1 - (keys.topk(count, dim=-1).values & 0xFFFFFFFF)
    return scaled.gather(1, order), order
