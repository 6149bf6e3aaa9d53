"""Clients and their adapters that always have work for a scheduler, and the service that each has got."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from manylora.server.engine.clients import Client
from manylora.server.engine.scheduler import Scheduler
from manylora.server.engine.sequence import ResolvedMix, Sequence
from tests.support.scheduling import step
from tests.support.sequences import make_sequence

SEQS = 6  # that run at a time
MOST = 12  # tokens of a prompt, and of an answer


class Source(NamedTuple):
    """Who sends, and for which adapter."""

    client: Client
    adapter: str = "(base)"


class Traffic:
    """Clients that always have so many sequences there."""

    def __init__(self, made: Scheduler, backlog: Mapping[Client | Source, int], seed: int = 0) -> None:
        self.made, self.backlog = made, backlog
        self.service: Counter[str] = Counter()  # by client
        self.service_with: Counter[tuple[str, str]] = Counter()  # by client and adapter
        self._random = random.Random(seed)
        self.there: dict[Client | Source, list[Sequence]] = {source: [] for source in backlog}

    def run(self, steps: int) -> None:
        """Run so many steps, with new sequences for those that have ended."""
        for _ in range(steps):
            for source, count in self.backlog.items():
                there = self.there[source] = [s for s in self.there[source] if s.finish_reason is None]
                while len(there) < count:
                    there.append(self.send(source))
            sequences = {s.id: s for each in self.there.values() for s in each}
            started = {s.id for s in sequences.values() if s.first_scheduled is None}
            outputs = {s.id: s.num_output_tokens for s in sequences.values()}
            step(self.made)
            for sequence in sequences.values():
                if sequence.id in started and sequence.first_scheduled is not None:
                    self._count(sequence, sequence.num_prompt_tokens)
                self._count(sequence, 2 * (sequence.num_output_tokens - outputs[sequence.id]))

    def send(self, source: Client | Source) -> Sequence:
        """One more sequence."""
        client, adapter = source if isinstance(source, Source) else Source(source)
        lengths = [self._random.randint(1, MOST) for _ in range(2)]
        mix = ResolvedMix(label=adapter)
        sequence = make_sequence(range(lengths[0]), max_tokens=lengths[1], client=client, mix=mix)
        self.made.add(sequence)
        return sequence

    def _count(self, sequence: Sequence, amount: int) -> None:
        self.service[sequence.client.name] += amount
        self.service_with[sequence.client.name, sequence.mix.label] += amount


def bound(clients: Iterable[Client]) -> float:
    """Of the paper: 2 max(price of a prompt, of all answers that run at a time), by the smallest weight."""
    return 2 * max(MOST, 2 * SEQS * MOST) / min(client.weight for client in clients)
