"""A machine that several replicas share: each is slower while others compute."""

from __future__ import annotations

from typing import Protocol


class Paced(Protocol):
    """What computes there."""

    def repace(self, others: int, now: float) -> None:
        """So many others compute from now on."""


class SharedMachine:
    """Knows which of its replicas compute, and tells them when that changes."""

    def __init__(self) -> None:
        self._busy: list[Paced] = []

    def begin(self, replica: Paced, now: float) -> int:
        """One that was idle computes; returns how many others do."""
        others = len(self._busy)
        self._busy.append(replica)
        self._tell(replica, now)
        return others

    def end(self, replica: Paced, now: float) -> None:
        """It has nothing to compute any more."""
        self._busy.remove(replica)
        self._tell(replica, now)

    def _tell(self, changed: Paced, now: float) -> None:
        others = len(self._busy) - 1
        for replica in self._busy:
            if replica is not changed:
                replica.repace(others, now)
