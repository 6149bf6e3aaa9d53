"""How much of what adapters change is left once the merged weights are rounded to a few bits.

A weight in bfloat16 has three digits. A change of less than half of its last one is lost where the weight was
on that grid before, so the merge of a weak adapter may be the base, without any error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

WEAK = 0.9  # share of the effect, below which it is worth a warning
_ROWS = 256  # of a weight that are looked at together, in float64


@dataclass(slots=True)
class Survival:
    """The share of the change of weights that was added up so far, and is in the rounded weights.

    For weights W, a change Δ and rounding r() it is ⟨r(W+Δ) − r(W), Δ⟩ / ⟨Δ, Δ⟩, over all weights that were
    added: 1 where everything is there, 0 where nothing is. What rounding adds at random cancels out of it.
    """

    _kept: float = 0.0
    _wanted: float = 0.0

    def add(self, base: torch.Tensor, merged: torch.Tensor, rounded: torch.Tensor) -> None:
        """Count a weight: as it was, with the change in float32, and rounded."""
        for before, exact, after in zip(*(t.split(_ROWS) for t in (base, merged, rounded)), strict=True):
            change = exact.double() - before.double()
            moved = after.double() - before.to(after.dtype).double()
            self._kept += float((moved * change).sum())
            self._wanted += float(change.square().sum())

    @property
    def share(self) -> float:
        """Of the effect, 0 or more; 1 where nothing was to be changed."""
        return max(0.0, self._kept / self._wanted) if self._wanted else 1.0


def weak_warning(share: float) -> str | None:
    """What is to be said where only this share of an effect has survived; None where that is enough."""
    if share >= WEAK:
        return None
    return (
        f"only {share:.1%} of what the adapters change is left: the change is smaller than the rounding of "
        "the weights; --dtype fp32 keeps it"
    )
