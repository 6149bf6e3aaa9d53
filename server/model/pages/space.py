"""Which elements of the pool of rank pages are taken."""

from __future__ import annotations

import itertools
from collections.abc import Iterable


class PageSpace:
    """Runs of elements that are taken. First fit over free runs, neighbours joined on release."""

    def __init__(self, start: int, end: int) -> None:
        self._free: list[tuple[int, int]] = [(start, end)]
        self._taken: dict[int, int] = {}
        self.capacity = end - start

    @property
    def used(self) -> int:
        """Elements of the pool that are taken."""
        return sum(self._taken.values())

    def reserve(self, size: int) -> int | None:
        """Start of a free run of ``size`` elements, now taken; None when no run is long enough."""
        for index, (start, end) in enumerate(self._free):
            if end - start >= size:
                self._free[index : index + 1] = [(start + size, end)] if end - start > size else []
                self._taken[start] = size
                return start
        return None

    def would_fit(self, size: int, without: Iterable[int]) -> bool:
        """Whether a free run of ``size`` elements would be there if the runs that begin so were released."""
        runs = sorted([*self._free, *((start, start + self._taken[start]) for start in without)])
        begin = end = -1
        for start, stop in runs:
            begin, end = (begin, stop) if start == end else (start, stop)
            if end - begin >= size:
                return True
        return False

    def release(self, start: int) -> int:
        """Free the run that begins at ``start``; returns its size."""
        size = self._taken.pop(start)
        runs = sorted([*self._free, (start, start + size)])
        joined = runs[:1]
        for run in runs[1:]:
            if joined[-1][1] == run[0]:
                joined[-1] = (joined[-1][0], run[1])
            else:
                joined.append(run)
        self._free = joined
        return size

    def check(self) -> None:
        """Assert that free and taken runs tile the space exactly."""
        runs = sorted([*self._free, *((s, s + n) for s, n in self._taken.items())])
        assert sum(end - start for start, end in runs) == self.capacity
        assert all(a[1] == b[0] for a, b in itertools.pairwise(runs))
