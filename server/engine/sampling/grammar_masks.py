"""What may follow the answers that have a grammar, worked out while the model computes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from manylora.server.engine.sequence import Sequence
from manylora.server.grammars.grammar import GrammarState

_Job = tuple[GrammarState, list[int]]  # and the tokens it has not taken


class GrammarMasks:
    """Fills the bits of a step's sequences in a thread of its own. The library lets others run meanwhile."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "masks")  # which starts its thread when it gets work
        self._running: Future[None] | None = None

    def begin(self, sequences: Iterable[Sequence]) -> None:
        """Begin with the bits for the next token of each of ``sequences`` that has a grammar."""
        self.finish()  # what a step that failed has left
        jobs = [(s.grammar, _untaken(s, s.grammar)) for s in sequences if s.grammar is not None]
        if jobs:
            self._running = self._pool.submit(_fill, jobs)

    def finish(self) -> None:
        """Wait until they are there."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()


def _untaken(sequence: Sequence, state: GrammarState) -> list[int]:
    return sequence.token_ids[sequence.num_prompt_tokens + state.num_taken :]


def _fill(jobs: list[_Job]) -> None:
    for state, tokens in jobs:
        if not state.is_filled or tokens:
            state.take(tokens)
