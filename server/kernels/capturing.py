"""Steps that are captured once and replayed from then on, as those who run the engine see them."""

from __future__ import annotations

from typing import Protocol


class Capturing(Protocol):
    """What a backend captures. A size is captured when a step of it runs for the first time."""

    @property
    def num_failed(self) -> int:
        """Sizes that could not be captured, and are launched every time."""

    def sizes(self, rows: int, context: int) -> list[tuple[int, int]]:
        """The (rows, tokens of context) of the decode steps that capture all up to these, in order."""

    def chunks(self, rows: int, sequences: int, context: int) -> list[list[int]]:
        """Rows of each sequence of the steps that capture all chunks of prompts up to these, in order."""

    def restart(self) -> None:
        """Forget what was captured: another thread runs the steps from now on."""

    def seal(self) -> None:
        """Requests run from now on: capture at most a few more, for steps of a kind that is rare."""
