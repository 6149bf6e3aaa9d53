"""How much each adapter is asked for of late: rank × tokens a second, older requests counting for less."""

from __future__ import annotations

from heapq import nlargest

_MOST = 20_000  # adapters whose demand is remembered; beyond twice as many the least are forgotten


class Demand:
    """Sums that halve every ``half_life`` seconds. Times are of any one clock that never goes back."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._sums: dict[str, tuple[float, float]] = {}  # name -> what it was, and when
        self._total = (0.0, 0.0)

    def add(self, name: str, amount: float, now: float) -> None:
        """``amount`` more is asked of ``name``."""
        self._sums[name] = (self.of(name, now) + amount, now)
        self._total = (self.total(now) + amount, now)
        if len(self._sums) > 2 * _MOST:
            kept = nlargest(_MOST, self._sums, key=lambda name: self.of(name, now))
            self._sums = {name: self._sums[name] for name in kept}

    def of(self, name: str, now: float) -> float:
        """What is left of what was asked of ``name``."""
        return self._left(self._sums.get(name, (0.0, now)), now)

    def total(self, now: float) -> float:
        """What is left of everything."""
        return self._left(self._total, now)

    def share(self, name: str, now: float) -> float:
        """The part of everything that was asked of ``name``, between 0 and 1."""
        total = self.total(now)
        return min(1.0, self.of(name, now) / total) if total > 0 else 0.0

    def _left(self, was: tuple[float, float], now: float) -> float:
        amount, at = was
        return float(amount * 0.5 ** ((now - at) / self._half_life))
