"""When a refused client should try again: as often as sequences end while the engine has work."""

from __future__ import annotations

_MEMORY = 0.9  # weight of the past in the running mean
_SHORTEST, _LONGEST = 1.0, 60.0  # seconds a client may be told to wait


class RetryAfter:
    """The running mean of seconds between two ends. Time in which nothing was open does not count."""

    def __init__(self) -> None:
        self._between = 0.05  # between two ends; replaced by what is seen
        self._since = 0.0  # the last end, or the start of work after a pause

    def resumed(self, now: float) -> None:
        """There is work again after a time without, at ``now`` seconds of a monotonic clock."""
        self._since = now

    def finished(self, now: float) -> None:
        """A sequence ended at ``now``."""
        self._between = _MEMORY * self._between + (1 - _MEMORY) * (now - self._since)
        self._since = now

    @property
    def seconds(self) -> float:
        """Seconds until about one place is free, between 1 and 60."""
        return min(_LONGEST, max(_SHORTEST, self._between))
