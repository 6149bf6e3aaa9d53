"""How many rows a step may have: fewer for a while after memory did not last for one."""

from __future__ import annotations

_PATIENCE = 64  # steps that have to run before larger ones are tried again


class RowLimit:
    """A bound on the rows of steps. It is halved when one runs out of memory, and doubled while none does."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun = 0  # steps since the bound was last changed
        self._alone = False  # whether the last step that failed had one row
        self.rows = most

    def shrink(self, rows: int) -> bool:
        """Memory did not last for a step of ``rows``: allow half as many.

        A single row is tried once more: what the allocator kept has been given back meanwhile. False if that
        failed as well.
        """
        hopeless = rows == 1 and self._alone and self._begun == 1
        self._alone, self._begun = rows == 1 and not hopeless, 0
        self.rows = max(1, rows // 2)
        return not hopeless

    def count(self) -> None:
        """One more step begins; if it fails, :meth:`shrink` is called."""
        if self.rows == self._most and not self._alone:
            return
        self._begun += 1
        if self._begun > _PATIENCE:
            self.rows, self._begun, self._alone = min(self._most, 2 * self.rows), 0, False
