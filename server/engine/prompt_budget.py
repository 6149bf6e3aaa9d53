"""How many tokens of prompts a step may take on while answers run."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from math import inf

_LEAST = 16  # tokens of prompts that any step may take on, so that prompts get on
_LONG = (
    48  # rows of a step from which on the time of a row is learned: of a shorter one it is the smaller part
)
_NEW = 0.1  # weight of a new observation
_GENTLE = 2.0  # how many times the answers' own time a step takes while few tokens of prompts wait,
_FEW = 4  # that is, no more than so many such steps take on


class PromptBudget:
    """Keeps a step with prompts in it from taking much longer than the answers alone would take.

    A step of n rows takes about start + row * n seconds. Both numbers are learned from the steps themselves,
    so they are those of this machine and this load. Until they are known, there is no limit.
    """

    def __init__(self, stretch: float) -> None:
        """``stretch``: how many times the answers' own time a step may take; infinite for no limit at all."""
        self._stretch = stretch
        self._row: float | None = None  # seconds
        self._start: float | None = None  # seconds

    def prompt_rows(
        self, answers: int, prompts: Iterable[int], *, joining: int = 0, others: int = 0
    ) -> float:
        """The tokens of prompts that may run beside ``answers`` rows, each the next token of an answer.

        ``prompts``: the tokens of each prompt that is not computed yet; no more of them are looked at than
        needed. A short prompt is spread over steps of twice the answers' time, since that hardly delays it.
        ``joining``: sequences that will be answered together with those, once their prompts are computed:
        where much waits, what counts is the time that a step of all of them will take.
        ``others``: answers that wait for this whole step, since they run on other weights.
        """
        if self._row is None or self._start is None or self._stretch == inf or not (answers or others):
            return inf
        start = self._start / self._row  # in rows, as all that follows

        def rows(stretch: float, joining: int) -> float:
            beside = stretch * (start + answers + joining) if answers else inf
            between = (stretch - 1) * (start + others) if others else inf
            return min(beside, between) - (start + answers)

        gentle = rows(min(_GENTLE, self._stretch), 0)
        wide = _exceeds(_FEW * gentle, prompts)
        return max(_LEAST, rows(self._stretch, joining) if wide else gentle)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a step that has run."""
        if rows >= _LONG:
            self._row = _blend(self._row, max(seconds - (self._start or 0.0), 0.0) / rows)
        if self._row is not None:
            self._row = min(self._row, seconds / rows)  # or an outlier would last until the next long step
            self._start = _blend(self._start, seconds - self._row * rows)


def _exceeds(limit: float, amounts: Iterable[int]) -> bool:
    """Whether the amounts come to more than ``limit``."""
    return any(total > limit for total in accumulate(amounts))


def _blend(known: float | None, seen: float) -> float:
    return seen if known is None else known + _NEW * (seen - known)
