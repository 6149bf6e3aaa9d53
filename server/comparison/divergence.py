"""How far the next-token distributions of two models are apart, from their logits.

The measures themselves are in :mod:`manylora.adapters.fidelity.measures`. Equal rows of logits come out as
exactly 0, and nothing comes out negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from manylora.adapters.fidelity.measures import (
    ROWS_TOGETHER,
    NotNumbers,
    js_divergence,
    kl_divergence,
    largest_differences,
    log_probabilities,
)


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
    for start in range(0, len(tokens), ROWS_TOGETHER):
        table = _checked(log_probabilities(logits[start : start + ROWS_TOGETHER]))
        wanted = torch.tensor(tokens[start : start + ROWS_TOGETHER])[:, None]
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
    for start in range(0, len(baseline), ROWS_TOGETHER):
        rows, others = (_widen(x[start : start + ROWS_TOGETHER], width) for x in (baseline, logits))
        p, q = _checked(log_probabilities(rows)), _checked(log_probabilities(others))
        found.kl.extend(kl_divergence(p, q).tolist())
        found.js.extend(js_divergence(p, q).tolist())
        found.logits.extend(largest_differences(rows, others).tolist())
    return found


def _widen(logits: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(logits, (0, width - logits.shape[1]), value=float("-inf"))


def _checked(table: torch.Tensor) -> torch.Tensor:
    if table.isnan().any():
        raise NotNumbers("the model's logits are not numbers")
    return table
