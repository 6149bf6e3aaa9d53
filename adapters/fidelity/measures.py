"""How far the logits of one model are from those that are expected: every measure that a check judges by.

Logits are float tensors [n, V]: n positions, V tokens. Each measure says in which dtype it computes, because
thresholds were chosen for that. Rows are taken a few at a time, so that no copy of all logits is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

LOG_ZERO = -9999.0  # stands for the logarithm of 0, which JSON has not
ROWS_TOGETHER = 8  # float64 temporaries are 8 x V


class NotNumbers(ValueError):
    """A model's logits hold NaN or an infinity, so that nothing can be said of how far they are off."""


def relative_errors(expected: Tensor, found: Tensor) -> Tensor:
    """Error of each row of logits, relative to the spread of the row: 0 is equal, 1 is unrelated.

    It is the root mean square of the differences over the standard deviation of the expected logits,
    [n] in the dtype of the logits; inf where it is no number.
    """
    parts = [(b - a).pow(2).mean(-1).sqrt() / a.std(-1) for a, b in _pieces(expected, found)]
    return torch.cat(parts).nan_to_num(nan=math.inf, posinf=math.inf)


def relative_distance(expected: Tensor, found: Tensor) -> float:
    """Norm of the difference of all logits, relative to the norm of the expected ones.

    Computed in the dtype of the logits. NaN where a logit is NaN or infinite, and where all of the expected
    ones are 0: compare it so that NaN fails.
    """
    pieces = list(_pieces(expected, found))
    distance = float(torch.cat([(a - b).norm(dim=-1) for a, b in pieces]).norm())
    size = float(torch.cat([a.norm(dim=-1) for a, _ in pieces]).norm())
    return distance / size if size > 0 and math.isfinite(distance) and math.isfinite(size) else math.nan


def relative_peak(expected: Tensor, found: Tensor) -> float:
    """Largest difference of two logits of the same token, relative to the largest expected logit.

    Computed in the dtype of the logits. NaN where a logit is NaN or infinite.
    """
    difference, size = float((expected - found).abs().max()), float(expected.abs().max())
    if not (math.isfinite(difference) and math.isfinite(size)):
        return math.nan
    return difference / size if size else math.inf if difference else 0.0


def largest_differences(expected: Tensor, found: Tensor) -> Tensor:
    """Largest difference of two logits of the same token, for each row: float64 [n].

    An impossible token (a logit of -inf) counts as :data:`LOG_ZERO`.
    """
    apart = expected.double().clamp_min(LOG_ZERO) - found.double().clamp_min(LOG_ZERO)
    return apart.abs_().amax(-1)


def same_likeliest(expected: Tensor, found: Tensor) -> Tensor:
    """Whether both models find the same token the likeliest, for each row: bool [n]."""
    return expected.argmax(-1) == found.argmax(-1)


def log_probabilities(logits: Tensor) -> Tensor:
    """Logarithms of the probabilities of all tokens, in nats: float64 [n, V], at least :data:`LOG_ZERO`.

    A row with NaN or +inf is all NaN.
    """
    return logits.double().log_softmax(-1).clamp_min_(LOG_ZERO)


def kl_divergence(expected: Tensor, found: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(expected ‖ found) of each row, in nats.

    Takes what :func:`log_probabilities` gives. Rounding may leave less than nothing, which is 0.
    """
    return (expected.exp() * (expected - found)).sum(-1).clamp_min_(0)


def js_divergence(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each row, in nats: 0 to ln 2 (Lin 1991, doi:10.1109/18.61115).

    Takes what :func:`log_probabilities` gives. Exactly 0 where both rows are equal.
    """
    # log((eᵖ + eᵠ) / 2), written so that it is exactly p where p = q.
    middle = torch.maximum(one, other) + torch.log1p(0.5 * torch.expm1(-(one - other).abs()))
    return (0.5 * (kl_divergence(one, middle) + kl_divergence(other, middle))).clamp_max_(math.log(2))


def _pieces(expected: Tensor, found: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors, cut along rows into matching pieces of a few rows."""
    return zip(expected.split(ROWS_TOGETHER), found.split(ROWS_TOGETHER), strict=True)
