"""How far a comparison is, for clients that stream it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """How far the current prompt is. Whoever waits for ``changed`` sees the latest state only."""

    cases: int  # in all
    answered: list[int]  # tokens by target
    case: int = 0
    stage: str = "answers"
    scored: int = 0  # positions
    positions: int = 0  # of the reference
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def begin_case(self, case: int) -> None:
        """The prompt with this index comes next."""
        self.answered = [0] * len(self.answered)
        self.case, self.stage, self.scored, self.positions = case, "answers", 0, 0
        self.changed.set()

    def set_answered(self, target: int, tokens: int) -> None:
        """The answer of ``target`` has so many tokens."""
        self.answered[target] = tokens
        self.changed.set()

    def begin_scores(self, positions: int) -> None:
        """The reference, which has so many positions, is scored from now on."""
        self.stage, self.positions = "scores", positions
        self.changed.set()

    def set_scored(self, positions: int) -> None:
        """So many positions of the reference are scored."""
        self.scored = positions
        self.changed.set()

    def json(self) -> dict[str, Any]:
        """The event that tells a client of it."""
        return {
            "object": "comparison.progress",
            "case": self.case,
            "cases": self.cases,
            "stage": self.stage,
            "answered_tokens": list(self.answered),
            "scored_positions": self.scored,
            "positions": self.positions,
        }
