"""Means over a whole optimizer step, or a whole evaluation, of what its batches measure one by one.

TRL keeps one number for each batch and logs their plain mean, so that a batch with few tokens counts as
much as one with many: cut otherwise, the same step would log something else.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

TOTALS = frozenset({"num_tokens"})  # counted up by the trainer, not averaged

Metrics = MutableMapping[str, list[float]]  # a trainer's, emptied when they are logged


class Pool:
    """Weighted means of a trainer's metrics since they were last logged."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}  # metric -> (weighted sum, weight)

    def fold(self, metrics: Metrics, weight: Callable[[str], float]) -> None:
        """Make each list in ``metrics``, to which a batch was just added, the one mean since the last log.

        ``weight`` tells how many tokens or rows of the batch a metric is the mean of.
        """
        for key, values in metrics.items():
            if key in TOTALS:
                continue
            total, count = self._sums[key] if len(values) > 1 else (0.0, 0.0)
            added = weight(key)
            total, count = total + values[-1] * added, count + added
            self._sums[key] = total, count
            values[:] = [total / count if count else 0.0]
