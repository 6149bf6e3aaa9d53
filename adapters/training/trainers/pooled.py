"""Means over a whole optimizer step, or a whole evaluation, of what its batches measure one by one.

TRL keeps one number for each batch and logs their plain mean, so that a batch with few tokens counts as
much as one with many: cut otherwise, the same step would log something else.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor

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


class Accuracy:
    """Shares of rows that were right since they were last logged, in training and in evaluations apart."""

    def __init__(self, trainer: Any) -> None:
        """``trainer``: whose rows they are; it says whether they are learned, and of which processes."""
        self._trainer = trainer
        self._measured: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        self._pools = {"train": Pool(), "eval": Pool()}

    @property
    def _mode(self) -> str:
        return "train" if self._trainer.model.training else "eval"

    @torch.no_grad()
    def add(self, right: Tensor) -> None:
        """Count a batch; ``right`` bool [rows]."""
        mode = self._mode
        counts = torch.stack([right.sum(), torch.full_like(right.sum(), len(right))])
        total, rows = self._trainer.accelerator.gather(counts[None]).sum(0).tolist()
        self._measured[mode].setdefault("accuracy", []).append(total / rows)
        self._pools[mode].fold(self._measured[mode], lambda _: float(rows))

    def take(self) -> dict[str, float]:
        """What is to be logged, by name; the count begins anew."""
        mode = self._mode
        before = "" if mode == "train" else "eval_"
        found = {f"{before}{key}": values[-1] for key, values in self._measured[mode].items()}
        self._measured[mode].clear()
        return found
