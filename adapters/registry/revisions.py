"""The registry's table of revisions: the facts of each, as long as the history of some name holds it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sqlalchemy import select

from manylora.adapters.registry.records import RevisionRecord
from manylora.adapters.registry.rows import revision_records
from manylora.adapters.registry.schema import Database, history

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Revisions:
    """The facts of a registry's revisions, which come and go with the names that point to them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, digests: Iterable[str]) -> dict[str, RevisionRecord]:
        """The facts of those revisions ``digests`` that are registered, in few queries."""
        sound = [digest for digest in digests if _DIGEST.fullmatch(digest)]
        with self._database.read() as connection:
            return revision_records(connection, sound)

    def referenced(self) -> set[str]:
        """The digests that some name's current revision or history holds."""
        with self._database.read() as connection:
            return set(connection.execute(select(history.c.digest).distinct()).scalars())
