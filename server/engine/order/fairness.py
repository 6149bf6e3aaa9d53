"""Whose turn it is: counters of the service that each client got, the smallest of which goes first.

This is the Virtual Token Counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). A
client pays for the tokens of a prompt when it is admitted, if they are not cached, and twice as much for each
token that is generated, all of it divided by its weight. Whoever has work goes on in the order of the
counters; whoever comes back from having none is lifted to the smallest counter of those that have, so that
nobody saves up turns. Nothing is left idle for the sake of order.

There are two levels of it: clients, and within a tenant the adapters that its requests name.

Counters say who is next when a place is free. So that nobody has to wait until long answers of others end,
places are shared by weight as well: who runs less than its share of them, and has paid no more, may take one
from who runs more.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from heapq import heapify, heappop, heappush
from typing import Final

from manylora.server.engine.clients import EVERYBODY
from manylora.server.engine.order.counters import NOBODY, Counters
from manylora.server.engine.order.turns import Standings, Turns
from manylora.server.engine.sequence import Sequence

PROMPT_TOKEN: Final = 1.0
ANSWER_TOKEN: Final = 2.0


class Fairness:
    """The counters of all clients and their adapters. The engine's thread."""

    def __init__(self, *, enabled: bool = True) -> None:
        """Without ``enabled`` all are one client, who is served in order."""
        self._enabled = enabled
        self.turns = Turns() if enabled else None  # for those who wait elsewhere
        self._clients = Counters()
        self._adapters: dict[str, Counters] = {}  # of tenants
        self._weights: dict[str, float] = {}  # of clients that have work
        self._divided = 0  # tenants that have work for more than one adapter

    @property
    def contended(self) -> bool:
        """Whether more than one client has work, or one for several adapters: else there is no order."""
        return self._enabled and (self._clients.contended or self._divided > 0)

    def standing(self, sequence: Sequence) -> tuple[float, float]:
        """What the sequence's client has paid, and what with its adapter."""
        client = sequence.client
        if client is EVERYBODY:
            return self._clients.paid(client.name), 0.0
        return self._clients.paid(client.name), self._adapters[client.name].paid(sequence.mix.label)

    def join(self, sequence: Sequence, running: Iterable[Sequence]) -> None:
        """A sequence is there from now on."""
        client, adapter = sequence.client, sequence.mix.label
        own = None if client is EVERYBODY else self._adapters.setdefault(client.name, Counters())
        if not self._clients.has_work(client.name) or not (own is None or own.has_work(adapter)):
            self.settle(running)
        self._clients.join(client.name)
        self._weights[client.name] = client.weight
        if own is not None:
            self._divided -= own.contended
            own.join(adapter)
            self._divided += own.contended

    def leave(self, sequence: Sequence, running: Iterable[Sequence] = ()) -> None:
        """A sequence is there no more; ``running`` are those that still are."""
        self._pay_for_answer(sequence)
        client = sequence.client
        if sequence.first_scheduled is None:
            self._begin(sequence)
        if client is not EVERYBODY:
            own = self._adapters[client.name]
            self._divided -= own.contended
            own.leave(sequence.mix.label)
            self._divided += own.contended
        for gone in self._clients.leave(client.name):
            self._adapters.pop(gone, None)
        if not self._clients.has_work(client.name):
            del self._weights[client.name]
        self.tell(running)

    def admitted(self, sequence: Sequence, cached: int) -> None:
        """A sequence is admitted for the first time, with so many tokens of its prompt in the cache."""
        self._begin(sequence)
        self._pay(sequence, PROMPT_TOKEN * max(0, len(sequence) - cached))

    def is_owed(self, running: Seq[Sequence], places: int) -> bool:
        """Whether somebody waits to whom :meth:`takes_place_of` would give one of the ``places``."""
        self.settle(running)
        counts, shares = self._places(running, places)
        most = _furthest_above(counts, shares)
        return most is not None and any(
            self._clients.num_there(name) > counts[name] and self._may_take(name, most, counts, shares)
            for name in shares
        )

    def takes_place_of(self, sequence: Sequence, running: Seq[Sequence], places: int) -> Sequence | None:
        """Which of those that run, all ``places`` of them, gives way to ``sequence``.

        It is the youngest of the client that is furthest above its share. A share is by weight among the
        clients with work, and one place at least. None if nobody is above its share, or the client of
        ``sequence`` runs its own, or has paid more than who would give way.
        """
        counts, shares = self._places(running, places)
        most = _furthest_above(counts, shares)
        if most is None or not self._may_take(sequence.client.name, most, counts, shares):
            return None
        return next(each for each in reversed(running) if each.client.name == most)

    def _may_take(self, name: str, most: str, counts: Counter[str], shares: Mapping[str, float]) -> bool:
        paid = self._clients.paid
        return counts[name] + 1 <= shares[name] and paid(name) <= paid(most)

    def _places(self, running: Seq[Sequence], places: int) -> tuple[Counter[str], dict[str, float]]:
        """How many of the places each client has, and what its share of them is."""
        total = sum(self._weights.values())
        shares = {name: max(1.0, places * weight / total) for name, weight in self._weights.items()}
        return Counter(each.client.name for each in running), shares

    def settle(self, running: Iterable[Sequence]) -> None:
        """Let clients pay for what was generated since they last did; comes before a look at the counters."""
        for sequence in running:
            self._pay_for_answer(sequence)

    def in_turn(self, waiting: Iterable[Sequence]) -> Iterator[Sequence]:
        """What waits, each adapter's in the given order; next is who has paid least until then.

        Within a tenant a lower priority comes first, whatever has been paid. What is paid while this is read
        counts for what comes next.
        """
        queues: dict[str, dict[str, deque[Sequence]]] = {}
        for sequence in waiting:
            adapter = "" if sequence.client is EVERYBODY else sequence.mix.label
            queues.setdefault(sequence.client.name, {}).setdefault(adapter, deque()).append(sequence)
        clients = [(self._clients.paid(name), number, name) for number, name in enumerate(queues)]
        heapify(clients)
        within = {name: self._heap(adapters) for name, adapters in queues.items()}
        while clients:
            _, number, name = heappop(clients)
            *_, order, adapter = heappop(within[name])
            queue = queues[name][adapter]
            yield queue.popleft()
            if queue:
                heappush(within[name], (*self._rank(queue[0]), order, adapter))
            if within[name]:
                heappush(clients, (self._clients.paid(name), number, name))

    def tell(self, running: Iterable[Sequence]) -> None:
        """Tell those who wait elsewhere how clients stand, if anybody does."""
        if self.turns is None or not (self.turns.watched or self._clients.idle):
            return  # an idle engine has no step before which it could tell
        self.settle(running)
        within = dict.fromkeys(self.turns.watched, NOBODY)
        for name in within.keys() & self._adapters.keys():
            within[name] = self._adapters[name].standings()
        self.turns.told = Standings(self._clients.standings(), within)

    def _heap(self, adapters: dict[str, deque[Sequence]]) -> list[tuple[int, float, int, str]]:
        heap = [
            (*self._rank(queue[0]), order, adapter) for order, (adapter, queue) in enumerate(adapters.items())
        ]
        heapify(heap)
        return heap

    def _rank(self, sequence: Sequence) -> tuple[int, float]:
        """Of a sequence among its tenant's."""
        return sequence.priority, self.standing(sequence)[1]

    def _begin(self, sequence: Sequence) -> None:
        if self.turns is not None:
            self.turns.begun[sequence.client.name] += sequence.num_prompt_tokens

    def _pay_for_answer(self, sequence: Sequence) -> None:
        new = sequence.num_output_tokens - sequence.num_paid_tokens
        if new > 0:  # a step that is taken back leaves fewer
            sequence.num_paid_tokens += new
            self._pay(sequence, ANSWER_TOKEN * new)

    def _pay(self, sequence: Sequence, amount: float) -> None:
        client = sequence.client
        self._clients.pay(client.name, amount / client.weight)
        if client is not EVERYBODY:
            self._adapters[client.name].pay(sequence.mix.label, amount)


def _furthest_above(counts: Counter[str], shares: Mapping[str, float]) -> str | None:
    """Who runs the most beyond its share of the places; None if nobody does."""
    most = max(counts, key=lambda name: counts[name] - shares[name])
    return most if counts[most] > shares[most] else None
