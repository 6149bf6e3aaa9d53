"""Whether bytes come, or are taken, fast enough."""

from __future__ import annotations


class Pace:
    """Bytes over time: how long there were none, and how many there should have been.

    Times are in seconds on any clock; bytes that wait a long while must not be excused by many before.
    """

    def __init__(self, now: float) -> None:
        self._began = now
        self._last = now
        self._nbytes = 0

    def add(self, nbytes: int, now: float) -> None:
        """Count bytes that have come."""
        self._nbytes += nbytes
        self._last = now

    def is_too_slow(self, now: float, patience: float, rate: float) -> bool:
        """Whether nothing came for ``patience`` seconds, or less than ``rate`` bytes a second beyond them."""
        return now - self._last > patience or now - self._began > patience + self._nbytes / rate
