"""What tenants took: requests and tokens, added up by hour and model, by any number of servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from sqlalchemy import Row, delete, func, insert, literal, literal_column, select, update

from manylora.adapters.registry.schema import Database
from manylora.adapters.registry.tenants.tables import usage

HOUR: Final = 3600  # seconds
_COUNTS: Final = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")


class Counts(NamedTuple):
    """Requests that have ended, and their tokens."""

    requests: int
    prompt_tokens: int
    cached_tokens: int  # of the prompts', those that were not computed again
    completion_tokens: int

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(*(mine + more for mine, more in zip(self, other, strict=True)))


class Place(NamedTuple):
    """Where counts are added."""

    tenant: str  # its id
    name: str
    hour: int  # unix seconds of its beginning
    model: str  # an adapter's name, or one of the labels that stand for the base and for mixes


class By(StrEnum):
    """How counts are added up when they are told."""

    HOUR = "hour"
    DAY = "day"  # of UTC
    TOTAL = "total"


_WIDTH: Final = {By.HOUR: HOUR, By.DAY: 24 * HOUR}


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What a tenant took of one model in some time."""

    tenant: str  # its id
    name: str  # the tenant's
    model: str
    start: int | None  # unix seconds of the hour or day; None for all of the time that is asked about
    counts: Counts


class Usage:
    """The registry's counts. Blocks on the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, added: Mapping[Place, Counts]) -> None:
        """Add counts to what there is: all of them, or none if this raises."""
        with self._database.write_quietly() as connection:
            for place, counts in sorted(added.items()):
                row = (
                    (usage.c.tenant == place.tenant)
                    & (usage.c.hour == place.hour)
                    & (usage.c.model == place.model)
                )
                more = {what: usage.c[what] + getattr(counts, what) for what in _COUNTS}
                if connection.execute(update(usage).where(row).values(more)).rowcount == 0:
                    connection.execute(insert(usage).values({**place._asdict(), **counts._asdict()}))

    def read(
        self,
        *,
        tenant: str | None = None,
        since: int = 0,
        until: int | None = None,
        by: By = By.TOTAL,
        limit: int,
    ) -> list[UsageRecord]:
        """What tenants took, by time, then by tenant and model; at most ``limit`` records.

        Args:
            tenant: only of the tenant of that id.
            since: of hours that begin then or later, in unix seconds.
            until: of hours that begin before then.
            by: what is added up.
            limit: at most so many.
        """
        width = _WIDTH.get(by)
        # No parameter: PostgreSQL must see that it is what the rows are grouped by.
        start = literal(0) if width is None else usage.c.hour - usage.c.hour % literal_column(str(width))
        start = start.label("start")
        sums = [func.sum(usage.c[what]).label(what) for what in _COUNTS]
        whose = (usage.c.tenant, usage.c.name, usage.c.model)
        wanted = select(*whose, start, *sums).where(usage.c.hour >= since)
        if until is not None:
            wanted = wanted.where(usage.c.hour < until)
        if tenant is not None:
            wanted = wanted.where(usage.c.tenant == tenant)
        grouped = wanted.group_by(*whose, *([] if width is None else [start]))
        ordered = grouped.order_by(start, usage.c.name, usage.c.tenant, usage.c.model).limit(limit)
        with self._database.read() as connection:
            return [_record(row, timed=width is not None) for row in connection.execute(ordered)]

    def remove_before(self, hour: int) -> int:
        """Forget hours that began before then; how many rows went."""
        with self._database.write_quietly() as connection:
            return connection.execute(delete(usage).where(usage.c.hour < hour)).rowcount


def _record(row: Row[Any], *, timed: bool) -> UsageRecord:
    counts = Counts(*(int(getattr(row, what)) for what in _COUNTS))
    return UsageRecord(row.tenant, row.name, row.model, int(row.start) if timed else None, counts)
