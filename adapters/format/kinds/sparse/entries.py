"""Changes of a few entries of a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from manylora.adapters.format.update import NoUpdate


@dataclass(frozen=True, slots=True)
class SparseChange:
    """Numbers that are added to entries of W; those at one place add up.

    Rows or columns of W without a change cost nothing: the rank is the smaller number of those that have
    one.
    """

    rows: torch.Tensor  # [n] int64
    columns: torch.Tensor  # [n] int64
    values: torch.Tensor  # [n]
    shape: tuple[int, int]  # out, in
    stated_rank: int = 0

    @property
    def rank(self) -> int:
        """Rows or columns with a change, whichever are fewer."""
        return min(len(self.rows.unique()), len(self.columns.unique()), *self.shape)

    @property
    def needs_weight(self) -> bool:
        return False

    def factors(self, _weight: torch.Tensor | None, /) -> tuple[torch.Tensor, torch.Tensor]:
        width_out, width_in = self.shape
        self._check(self.rows, width_out)
        self._check(self.columns, width_in)
        values = self.values.float()
        rows, row = self.rows.unique(return_inverse=True)
        columns, column = self.columns.unique(return_inverse=True)
        if len(rows) <= len(columns):
            a = torch.zeros(len(rows), width_in).index_put_((row, self.columns), values, accumulate=True)
            return a, _picked(rows, width_out).T
        b = torch.zeros(width_out, len(columns)).index_put_((self.rows, column), values, accumulate=True)
        return _picked(columns, width_in), b

    def change(self, _weight: torch.Tensor | None, /) -> torch.Tensor:
        self._check(self.rows, self.shape[0])
        self._check(self.columns, self.shape[1])
        places = (self.rows, self.columns)
        return torch.zeros(self.shape).index_put_(places, self.values.float(), accumulate=True)

    def _check(self, places: torch.Tensor, width: int) -> None:
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < width:
            raise NoUpdate("entries that are changed lie outside of the weight")


def _picked(places: torch.Tensor, width: int) -> torch.Tensor:
    """One row [width] for each of ``places``, 1 there and 0 elsewhere."""
    return torch.zeros(len(places), width).index_put_((torch.arange(len(places)), places), torch.ones(1))
