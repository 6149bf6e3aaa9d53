"""What the arms of aliases have come to in traffic, added up over all servers that share the registry.

What is counted is the business of whoever counts: here it is a flat mapping of numbers that add up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from manylora.adapters.registry.records import AliasRecord, ArmRecord
from manylora.adapters.registry.rows import alias_records, require_alias
from manylora.adapters.registry.schema import Database, arms

Key = tuple[str, str]  # (alias, target)


class Arms:
    """What is counted of the arms of a registry's aliases, a row for each target that an alias has now."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, added: Mapping[Key, Mapping[str, float]]) -> None:
        """Add numbers to what arms (alias, target) have; arms that there are no more are skipped."""
        with self._database.write_quietly() as connection:
            for (alias, target), counts in sorted(added.items()):
                row = _rows(connection, alias).get(target)
                if row is not None:
                    values = {"counts": json.dumps(_sum(json.loads(row.counts), counts))}
                    mine = (arms.c.alias == alias) & (arms.c.target == target)
                    connection.execute(arms.update().where(mine).values(values))
                elif any(target in dict(record.arms) for record in alias_records(connection, alias)):
                    _insert(connection, alias, target, counts)  # an alias older than this table

    def totals(self, alias: str) -> tuple[AliasRecord, dict[str, ArmRecord]]:
        """An alias, and what each of its arms has come to, by target.

        Raises:
            AdapterNotFound: there is no such alias.
        """
        with self._database.read() as connection:
            record = require_alias(connection, alias)
            rows = _rows(connection, alias)
            return record, {target: _arm(record, rows.get(target)) for target, _ in record.arms}


def replace_arms(connection: Connection, alias: str, targets: Sequence[str], *, reset: bool) -> None:
    """Drop the rows of targets that are gone (with ``reset``: all) and begin those of new ones."""
    gone = arms.c.alias == alias
    if not reset:
        gone &= arms.c.target.not_in(targets)
    connection.execute(delete(arms).where(gone))
    there = _rows(connection, alias)
    for target in dict.fromkeys(targets):
        if target not in there:
            _insert(connection, alias, target, {})


def _arm(alias: AliasRecord, row: Row[Any] | None) -> ArmRecord:
    return ArmRecord(alias.updated, {}) if row is None else ArmRecord(row.since, json.loads(row.counts))


def _insert(connection: Connection, alias: str, target: str, counts: Mapping[str, float]) -> None:
    row = {"alias": alias, "target": target, "since": time.time(), "counts": json.dumps(dict(counts))}
    connection.execute(insert(arms).values(row))


def _rows(connection: Connection, alias: str) -> dict[str, Row[Any]]:
    return {row.target: row for row in connection.execute(select(arms).where(arms.c.alias == alias))}


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}
