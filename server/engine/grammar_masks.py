"""What may follow the answers that have a grammar, worked out while or before the model computes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter

from manylora.server.engine.sequence import Sequence
from manylora.server.grammars.grammar import GrammarState

_Job = tuple[GrammarState, list[int]]  # and the tokens it has not taken
_LONG = 1e-3  # seconds for one answer, from which on a step does not wait for them
_NEWEST = 0.25  # weight of the newest time among those of an answer


class GrammarMasks:
    """Fills the bits of a step's sequences, before it or beside it.

    A thread beside a step whose own threads have all cores displaces one of them, and the others wait for
    that one, which costs more than the tenth of a millisecond that most bits take. So they are filled before
    the step there, but for those of grammars that take long.
    """

    def __init__(self, *, beside: bool = True) -> None:
        """``beside``: there is a core to spare while a step runs."""
        self.beside = beside
        self._pool = ThreadPoolExecutor(1, "masks")  # which starts its thread when it gets work
        self._running: Future[None] | None = None

    def begin(self, sequences: Iterable[Sequence]) -> None:
        """Begin with the bits for the next token of each of ``sequences`` that has a grammar."""
        self.finish()  # what a step that failed has left
        jobs = [(s.grammar, _untaken(s, s.grammar)) for s in sequences if s.grammar is not None]
        now: list[_Job] = []
        later: list[_Job] = []
        for job in jobs:
            (later if self.beside or job[0].seconds > _LONG else now).append(job)
        if later:
            self._running = self._pool.submit(_fill, later)
        _fill(now)

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
            began = perf_counter()
            state.take(tokens)
            state.seconds += _NEWEST * (perf_counter() - began - state.seconds)
