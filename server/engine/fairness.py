"""Whose turn it is: a counter of the service that each client got, the smallest of which goes first.

This is the Virtual Token Counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). A
client pays for the tokens of a prompt when it is admitted, if they are not cached, and twice as much for each
token that is generated, all of it divided by its weight. Whoever has work goes on in the order of the
counters; whoever comes back from having none is lifted to the smallest counter of those that have, so that
nobody saves up turns. Nothing is left idle for the sake of order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from manylora.server.engine.sequence import Sequence

PROMPT_TOKEN: Final = 1.0
ANSWER_TOKEN: Final = 2.0


class Fairness:
    """The counters of all clients, and how many sequences of each run or wait. The engine's thread."""

    def __init__(self, *, enabled: bool = True) -> None:
        """Without ``enabled`` all are one client, who is served in order."""
        self._enabled = enabled
        self._counters: dict[str, float] = {}
        self._work: dict[str, int] = {}  # sequences that run or wait, of clients that have any
        self._last = 0.0  # the counter of who had work last, while nobody has

    @property
    def contended(self) -> bool:
        """Whether more than one client has work: otherwise there is no order between them to find."""
        return self._enabled and len(self._work) > 1

    def counter(self, client: str) -> float:
        """What a client has paid."""
        return self._counters[client]

    def join(self, sequence: Sequence, running: Iterable[Sequence]) -> None:
        """A sequence is there from now on."""
        name = sequence.client.name
        if name not in self._work:
            self.settle(running)
            least = min((self._counters[each] for each in self._work), default=self._last)
            self._counters[name] = max(self._counters.get(name, 0.0), least)
            self._work[name] = 0
        self._work[name] += 1

    def leave(self, sequence: Sequence) -> None:
        """A sequence is there no more."""
        self._pay_for_answer(sequence)
        name = sequence.client.name
        self._work[name] -= 1
        if not self._work[name]:
            del self._work[name]
            self._last = self._counters[name]

    def admitted(self, sequence: Sequence, cached: int) -> None:
        """A sequence is admitted for the first time, with so many tokens of its prompt in the cache."""
        self._pay(sequence, PROMPT_TOKEN * max(0, len(sequence) - cached))

    def settle(self, running: Iterable[Sequence]) -> None:
        """Let clients pay for what was generated since they last did; comes before a look at the counters."""
        for sequence in running:
            self._pay_for_answer(sequence)

    def _pay_for_answer(self, sequence: Sequence) -> None:
        new = sequence.num_output_tokens - sequence.num_paid_tokens
        if new > 0:  # a step that is taken back leaves fewer
            sequence.num_paid_tokens += new
            self._pay(sequence, ANSWER_TOKEN * new)

    def _pay(self, sequence: Sequence, amount: float) -> None:
        self._counters[sequence.client.name] += amount / sequence.client.weight
