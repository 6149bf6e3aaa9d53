"""Aliases: names that stand for a model string, or for a weighted split of several."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert

from manylora.adapters.errors import AdapterExists, MixError
from manylora.adapters.mix import MAX_ENTRIES, check_name, parse_target
from manylora.adapters.registry.arms import replace_arms
from manylora.adapters.registry.records import AliasRecord
from manylora.adapters.registry.rows import alias_records, find, put_change, require_alias
from manylora.adapters.registry.schema import Database, aliases


class Aliases:
    """The aliases of a registry, beside its names: no alias is called as an adapter is."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, name: str, arms: Sequence[tuple[str, float]], *, reset: bool = False) -> AliasRecord:
        """Make ``name`` stand for the model strings ``arms``, each with its share (positive, of any sum).

        "" is the base model. Servers of one registry may call theirs differently, and not as adapters are.

        Whether the targets exist is not asked: that is known when a request resolves. What was counted of
        targets that stay is kept, unless ``reset``; what was counted of others is dropped.

        Raises:
            AdapterNameError: the name, or one in a target, is malformed.
            AdapterExists: the name is that of an adapter.
            MixError: a target is no model string, names an alias, or a share is not positive.
        """
        check_name(name)
        checked = _check_arms(arms)
        now = time.time()
        with self._database.write() as (connection, generation):
            if find(connection, name) is not None:
                raise AdapterExists(f"the name {name!r} is that of an adapter")
            _refuse_chains(name, checked, alias_records(connection))
            row = {"arms": json.dumps(checked), "updated": now}
            if connection.execute(aliases.update().where(aliases.c.name == name).values(row)).rowcount == 0:
                connection.execute(insert(aliases).values(name=name, created=now, **row))
            replace_arms(connection, name, [target for target, _ in checked], reset=reset)
            put_change(connection, name, generation)
            return alias_records(connection, name)[0]

    def remove(self, name: str) -> AliasRecord:
        """Delete the alias ``name``; returns what it was.

        Raises:
            AdapterNotFound: there is no such alias.
        """

        def delete_it(connection: Connection, generation: int) -> AliasRecord:
            before = require_alias(connection, name)
            connection.execute(delete(aliases).where(aliases.c.name == name))
            put_change(connection, name, generation)
            return before

        return self._database.free(delete_it)

    def get(self, name: str) -> AliasRecord:
        """The record of the alias ``name``.

        Raises:
            AdapterNotFound: there is no such alias.
        """
        with self._database.read() as connection:
            return require_alias(connection, name)

    def all(self) -> list[AliasRecord]:
        """All aliases, in order of their names."""
        with self._database.read() as connection:
            return alias_records(connection)


def _check_arms(arms: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    if not 1 <= len(arms) <= MAX_ENTRIES:
        raise MixError(f"an alias stands for 1 to {MAX_ENTRIES} model strings")
    for target, share in arms:
        parse_target(target)
        if not (math.isfinite(share) and share > 0):
            raise MixError(f"the share of {target!r} must be a positive number")
    return [(target, float(share)) for target, share in arms]


def _refuse_chains(name: str, arms: Sequence[tuple[str, float]], known: Sequence[AliasRecord]) -> None:
    """Aliases stand for adapters, so that resolving one can neither loop nor branch twice."""
    others = {alias.name for alias in known} | {name}
    for target, _ in arms:
        if not others.isdisjoint(_names(target)):
            raise MixError(f"the alias {name!r} can't stand for {target!r}, which names an alias")
    for alias in known:
        if alias.name != name and any(name in _names(target) for target, _ in alias.arms):
            raise MixError(f"the alias {alias.name!r} stands for {name!r}, so that can't become an alias")


def _names(target: str) -> set[str]:
    return {term.name for term in parse_target(target)}
