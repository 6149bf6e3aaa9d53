"""How far the next-token distributions of two models are apart, from their logits.

All sums are taken in float64. Equal rows of logits come out as exactly 0, and nothing comes out negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

FLOOR = -9999.0  # stands for the logarithm of 0, which JSON has not
_ROWS = 8  # positions at a time: float64 temporaries of 8 x V


class NotNumbers(ValueError):
    """A model's logits hold NaN or +inf."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What one model thinks of given tokens, per position."""

    logprobs: list[float]  # of the token that is there, nats
    top1: list[int]  # the likeliest token


@dataclass(frozen=True, slots=True)
class Distances:
    """How far a model is from the baseline, per position."""

    kl: list[float]  # KL(baseline ‖ model), nats
    js: list[float]  # Jensen–Shannon divergence, nats: 0 to ln 2
    logits: list[float]  # largest absolute difference of two logits of the same token


def scores(logits: torch.Tensor, tokens: Sequence[int]) -> Scores:
    """Scores of ``tokens`` [n] under ``logits`` [n, V].

    Raises:
        NotNumbers: the logits are no distribution.
    """
    logprobs: list[float] = []
    for start in range(0, len(tokens), _ROWS):
        table = _log_softmax(logits[start : start + _ROWS])
        wanted = torch.tensor(tokens[start : start + _ROWS])[:, None]
        logprobs += table.gather(1, wanted)[:, 0].tolist()
    return Scores(logprobs, logits.argmax(-1).tolist())


def distances(baseline: torch.Tensor, logits: torch.Tensor) -> Distances:
    """Distances of ``logits`` from ``baseline``, both [n, V].

    Where one has fewer tokens, because an adapter adds some, the others' are impossible to it.

    Raises:
        NotNumbers: either is no distribution.
    """
    width = max(baseline.shape[1], logits.shape[1])
    found = Distances([], [], [])
    for start in range(0, len(baseline), _ROWS):
        rows, others = (_widen(x[start : start + _ROWS], width) for x in (baseline, logits))
        p, q = _log_softmax(rows), _log_softmax(others)
        found.kl.extend(_kl(p, q).tolist())
        found.js.extend(_js(p, q).tolist())
        apart = rows.double().clamp_min(FLOOR) - others.double().clamp_min(FLOOR)
        found.logits.extend(apart.abs().amax(-1).tolist())
    return found


def _widen(logits: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(logits, (0, width - logits.shape[1]), value=float("-inf"))


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    table = logits.double().log_softmax(-1)
    if table.isnan().any():
        raise NotNumbers("the model's logits are not numbers")
    return table.clamp_min(FLOOR)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) per row of log-probabilities; rounding may leave less than nothing, which is 0."""
    return (p.exp() * (p - q)).sum(-1).clamp_min(0)


def _js(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Jensen–Shannon divergence per row of log-probabilities (Lin 1991, doi:10.1109/18.61115)."""
    # log((eᵖ + eᵠ) / 2), written so that it is exactly p where p = q.
    middle = torch.maximum(p, q) + torch.log1p(0.5 * torch.expm1(-(p - q).abs()))
    return (0.5 * (_kl(p, middle) + _kl(q, middle))).clamp_max(math.log(2))
