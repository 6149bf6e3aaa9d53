"""How many tokens of prompts a step may take on while answers run."""

from __future__ import annotations

_LEAST = 16  # tokens of prompts that any step may take on, so that prompts get on
_LONG = 48  # rows of a step whose time is that of its rows; a shorter one may wait for the weights instead
_SHORT = 8  # rows of a step whose time is that of reading the weights
_NEW = 0.1  # weight of a new observation


class Pace:
    """Keeps a step with prompts in it from taking much longer than the answers alone would take.

    A step of T rows takes about max(floor, row * T) seconds: below some number of rows it waits for the
    weights, from there on every row costs the same. Both numbers are learned from the steps themselves, so
    they are those of this machine and this load. Until they are known, there is no limit.
    """

    def __init__(self, stretch: float) -> None:
        """``stretch``: how many times the answers' own time a step may take; infinite for no limit."""
        self._stretch = stretch
        self._row: float | None = None  # seconds
        self._floor: float | None = None  # seconds

    def prompt_rows(self, answers: int) -> float:
        """The tokens of prompts that may run beside ``answers`` rows, each the next token of an answer."""
        if self._row is None or not answers:
            return float("inf")
        floor = 0.0 if self._floor is None else self._floor
        alone = max(floor, self._row * answers)
        return max(_LEAST, self._stretch * alone / self._row - answers)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a step that has run."""
        if rows >= _LONG:
            self._row = _blend(self._row, seconds / rows)
        elif rows <= _SHORT:
            self._floor = _blend(self._floor, seconds)


def _blend(known: float | None, seen: float) -> float:
    return seen if known is None else known + _NEW * (seen - known)
