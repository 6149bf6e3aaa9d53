"""The order of the engine's counters for those who wait for something else: room for their adapters.

The engine's thread tells how clients stand, before each step while anybody wants to know; the event loop
reads it. What the event loop has handed to the engine and the engine has not begun counts as well: else a
tenant could take all the room before it has paid for any of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from manylora.server.engine.clients import EVERYBODY, Client
from manylora.server.engine.order.counters import NOBODY, LevelStandings


@dataclass(frozen=True, slots=True)
class Asker:
    """Who waits, and with what."""

    client: Client = EVERYBODY
    adapter: str = ""  # the name or mix that it asks for, as metrics call it
    priority: int = 0  # among the client's own; the lower, the earlier


NO_TENANT = Asker()


@dataclass(frozen=True, slots=True)
class Standings:
    """How clients stood at one moment. Made by the engine's thread, and never changed."""

    clients: LevelStandings = NOBODY
    adapters: Mapping[str, LevelStandings] = field(default_factory=dict)  # of the clients that were watched


Turn = tuple[float, bool, int, float, bool]  # the smaller goes first; where they are equal, who came first


@dataclass(frozen=True, slots=True)
class Floor:
    """To what counters are lifted of somebody who waits: what the least were when the waiting began."""

    client: float
    adapter: float


class Turns:
    """Whose turn it is. Event loop, but for ``told`` and ``begun``."""

    def __init__(self) -> None:
        self.watched: frozenset[str] = frozenset()  # clients that wait; read by the engine's thread
        self.told = Standings()  # replaced by the engine's thread
        self.begun: Counter[str] = Counter()  # tokens of prompts that wait no more; the engine's thread
        self._submitted: Counter[str] = Counter()  # tokens of prompts, by client

    def submitted(self, client: Client, tokens: int) -> None:
        """The engine is given prompts of so many tokens."""
        self._submitted[client.name] += tokens

    def floor(self, asker: Asker) -> Floor | None:
        """For somebody who waits from now on; None while the engine has not told how it stands."""
        within = self.told.adapters.get(asker.client.name)
        return None if within is None else Floor(self.told.clients.least, within.least)

    def of(self, asker: Asker, floor: Floor | None = None) -> Turn:
        """The place of ``asker`` at this moment; who has nothing in the engine goes before its equals.

        Without a floor it comes now.
        """
        told, client = self.told, asker.client
        waiting = self._submitted[client.name] - self.begun[client.name]
        turn = told.clients.of(client.name, None if floor is None else floor.client)
        busy = client.name in told.clients.with_work or waiting > 0
        if client is EVERYBODY:
            return turn + waiting / client.weight, busy, 0, 0.0, False
        within = told.adapters.get(client.name, NOBODY)
        own = within.of(asker.adapter, None if floor is None else floor.adapter)
        working = asker.adapter in within.with_work
        return turn + waiting / client.weight, busy, asker.priority, own, working
