"""Measures of one model against another over many rows of logits, of which only a few are there at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from manylora.adapters.fidelity.measures import (
    NotNumbers,
    kl_divergence,
    log_probabilities,
    relative_peak,
    same_likeliest,
)


@dataclass(slots=True)
class Totals:
    """Sums and maxima over the rows that were added."""

    rows: int = 0
    largest: float = 0.0  # relative_peak of the rows that were added together
    _kl: float = 0.0  # nats, summed
    _same: int = 0

    def add(self, expected: Tensor, found: Tensor) -> None:
        """Count rows of logits [n, V]: few at a time, since float64 copies of them are made.

        Raises:
            NotNumbers: a logit is NaN or infinite; nothing was counted.
        """
        largest = relative_peak(expected, found)
        if math.isnan(largest):
            raise NotNumbers("the models' logits are not all numbers")
        p, q = log_probabilities(expected), log_probabilities(found)
        self.rows += len(expected)
        self._kl += float(kl_divergence(p, q).sum())
        self._same += int(same_likeliest(expected, found).sum())
        self.largest = max(self.largest, largest)

    @property
    def mean_kl(self) -> float:
        """Mean of KL(expected ‖ found) over the rows, in nats."""
        return self._kl / self.rows

    @property
    def top1_agreement(self) -> float:
        """Share of the rows whose likeliest token is the same, 0 to 1."""
        return self._same / self.rows
