"""What the servers of a registry have taken of tenants' limits, and may take until they ask again.

Each server says what it has taken, and up to where it may go before it asks next: its ceiling. It gets that
in one transaction with what the others have, so that ceilings never add up to more than the limit, whatever
happens in between. What nobody uses is divided evenly among the servers that want some.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import Connection, delete, func, insert, select, update

from manylora.adapters.registry.schema import Database
from manylora.adapters.registry.tenants.tables import taken, usage

ALIVE_SECONDS: Final = 15.0  # since a server was last heard of; then it gets no share any more
COUNTS_SECONDS: Final = 60.0  # since then, for which what it took of a minute and might take still counts


class Part(NamedTuple):
    """A server's part of one limit."""

    total: int  # taken
    ceiling: int  # of what it may take until it asks again; at least ``total``


class Key(NamedTuple):
    """Whose limits: a tenant's by its id, of one adapter or ("") of all."""

    tenant: str
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a server has taken of one limit, and what it wants to take next."""

    limit: int
    total: int
    floor: int  # as far as it may go while it asks: at least ``total``, and no further than it was granted
    wanted: int = 0
    idle: bool = False  # it wants no share
    held: bool = False  # as long as its server is there; else for as long as a minute counts


@dataclass(frozen=True, slots=True)
class Granted:
    """How far a server may go, and what the others have."""

    ceiling: int
    others: int  # taken by the others, as they said last


def ceiling_of(asked: Asked, others: Collection[Part]) -> int:
    """How far a server may go: an even share of what is left, or as far as it wants, if others leave that."""
    left = asked.limit - asked.total - sum(part.total for part in others)
    share = 0 if asked.idle else max(0, left) // (1 + len(others))
    free = asked.limit - sum(part.ceiling for part in others)
    return max(asked.floor, min(asked.total + max(share, asked.wanted), free))


class Taken:
    """The parts of all servers. Blocks on the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def arrive(self, server: str, now: float) -> int:
        """Say that a server is there; how many there are, with it."""
        with self._database.write_quietly() as connection:
            connection.execute(delete(taken).where(taken.c.seen < now - COUNTS_SECONDS))
            _put(connection, Key(""), server, now, {})
            return _servers(connection, now)

    def count(self, now: float) -> int:
        """How many servers there are."""
        with self._database.read() as connection:
            return _servers(connection, now)

    def exchange(
        self, server: str, now: float, asked: Mapping[Key, Mapping[str, Asked]]
    ) -> dict[Key, dict[str, Granted]]:
        """Say what a server has taken, and be told how far it may go."""
        granted: dict[Key, dict[str, Granted]] = {}
        with self._database.write_quietly() as connection:
            for key in sorted(asked):
                others = _others(connection, key, server, now)
                granted[key], own = {}, {}
                for what, each in asked[key].items():
                    since = now - (ALIVE_SECONDS if each.held else COUNTS_SECONDS)
                    parts = [part[what] for seen, part in others if what in part and seen > since]
                    ceiling = ceiling_of(each, parts)
                    granted[key][what] = Granted(ceiling, sum(part.total for part in parts))
                    own[what] = Part(each.total, ceiling)
                idle = all(each.idle and not each.floor for each in asked[key].values())
                _put(connection, key, server, now, None if idle else own)
        return granted

    def used_since(self, hour: int, tenants: Iterable[str]) -> dict[str, int]:
        """Tokens of prompts and answers that tenants have used in hours that begin then or later."""
        total = func.sum(usage.c.prompt_tokens + usage.c.completion_tokens)
        query = select(usage.c.tenant, total).where(usage.c.hour >= hour, usage.c.tenant.in_(list(tenants)))
        with self._database.read() as connection:
            return {row[0]: int(row[1]) for row in connection.execute(query.group_by(usage.c.tenant))}

    def leave(self, server: str) -> None:
        """Forget a server, with all that it has taken and might have."""
        with self._database.write_quietly() as connection:
            connection.execute(delete(taken).where(taken.c.server == server))


def _servers(connection: Connection, now: float) -> int:
    alive = (taken.c.tenant == "") & (taken.c.seen > now - ALIVE_SECONDS)
    return int(connection.execute(select(func.count()).select_from(taken).where(alive)).scalar_one())


def _others(connection: Connection, key: Key, server: str, now: float) -> list[tuple[float, dict[str, Part]]]:
    """When each of the others was last heard of, and its parts."""
    rows = select(taken.c.seen, taken.c.parts).where(
        taken.c.tenant == key.tenant,
        taken.c.adapter == key.adapter,
        taken.c.server != server,
        taken.c.seen > now - COUNTS_SECONDS,
    )
    return [(row.seen, _parts(row.parts)) for row in connection.execute(rows)]


def _parts(stored: str) -> dict[str, Part]:
    return {what: Part(*each) for what, each in json.loads(stored).items()}


def _put(connection: Connection, key: Key, server: str, now: float, parts: Mapping[str, Part] | None) -> None:
    mine = (taken.c.tenant == key.tenant) & (taken.c.adapter == key.adapter) & (taken.c.server == server)
    if parts is None:
        connection.execute(delete(taken).where(mine))
        return
    row = {"seen": now, "parts": json.dumps(parts)}
    if connection.execute(update(taken).where(mine).values(row)).rowcount == 0:
        connection.execute(insert(taken).values({**key._asdict(), "server": server, **row}))
