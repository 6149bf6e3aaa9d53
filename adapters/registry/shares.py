"""With which tenants adapters are shared, besides the one whose they are, and since when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection

from sqlalchemy import Connection

from manylora.adapters.registry.records import NameRecord
from manylora.adapters.registry.rows import put_change, require
from manylora.adapters.registry.schema import Database, names


class Shares:
    """What a registry has of it. Tenants are known by their names; "*" is all of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, name: str, tenants: Collection[str]) -> NameRecord:
        """Let those tenants use ``name``, no others.

        Raises:
            AdapterNotFound: no such name.
        """
        return self._change(name, lambda _: set(tenants))

    def add(self, name: str, tenants: Collection[str], most: int) -> NameRecord:
        """Let those tenants use ``name`` as well; nothing changes where there would be more than ``most``.

        Raises:
            AdapterNotFound: no such name.
        """

        def added(before: set[str]) -> set[str]:
            after = before | set(tenants)
            return after if len(after) <= most else before

        return self._change(name, added)

    def remove(self, name: str, tenant: str) -> NameRecord:
        """Let a tenant use ``name`` no more.

        Raises:
            AdapterNotFound: no such name.
        """
        return self._change(name, lambda before: before - {tenant})

    def _change(self, name: str, change: Callable[[set[str]], set[str]]) -> NameRecord:
        def work(connection: Connection, generation: int) -> NameRecord:
            record = require(connection, name)
            now, known = time.time(), dict(record.shared_since)
            after = sorted(change(set(record.shared)))
            since = {tenant: known.get(tenant, now) for tenant in after}
            values = {"shared": json.dumps(after), "shared_since": json.dumps(since), "updated": now}
            connection.execute(names.update().where(names.c.name == name).values(values))
            put_change(connection, name, generation)
            return require(connection, name)

        return self._database.free(work)
