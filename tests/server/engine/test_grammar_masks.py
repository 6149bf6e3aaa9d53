"""When masks are made: in a thread where a core is to spare, else before the step unless they take long."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from manylora.server.engine.grammar_masks import GrammarMasks


class State:
    """A grammar's state that takes the time it is told, and says in which thread."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.is_filled = False
        self.taken: list[int] = []
        self.threads: list[str] = []

    @property
    def num_taken(self) -> int:
        return len(self.taken)

    def take(self, tokens: list[int]) -> None:
        self.taken += tokens
        self.threads.append(threading.current_thread().name)
        self.is_filled = True


def sequence(state: State | None) -> Any:
    return SimpleNamespace(grammar=state, token_ids=[7, 8, 9], num_prompt_tokens=2)


@pytest.mark.parametrize(
    ("beside", "seconds", "here"), [(False, 0.0, True), (False, 1.0, False), (True, 0.0, False)]
)
def test_where_masks_are_made(beside: bool, seconds: float, here: bool) -> None:
    masks, state = GrammarMasks(beside=beside), State(seconds)
    masks.begin([sequence(state), sequence(None)])
    assert state.is_filled or not here
    masks.finish()
    assert state.taken == [9]
    assert (state.threads == [threading.current_thread().name]) == here
    masks.begin([sequence(state)])
    masks.finish()
    assert len(state.threads) == 1  # there was nothing new


def test_one_that_took_long_once_comes_back() -> None:
    masks, state = GrammarMasks(beside=False), State(0.5)
    for count in range(40):
        state.taken = []
        masks.begin([sequence(state)])
        masks.finish()
        assert len(state.threads) == count + 1
    assert state.threads[0] != state.threads[-1] == threading.current_thread().name
