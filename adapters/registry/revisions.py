"""The registry's table of revisions: the facts of each, as long as the history of some name holds it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sqlalchemy import func, select

from manylora.adapters.registry.records import RevisionRecord
from manylora.adapters.registry.rows import revision_records
from manylora.adapters.registry.schema import Database, history, revisions

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

    def bytes_of(self, namespace: str) -> int:
        """Bytes of all revisions, of now and before, that names have which begin with ``namespace``."""
        named = history.c.name.startswith(namespace, autoescape=True)
        theirs = select(history.c.digest).where(named)
        query = select(func.sum(revisions.c.nbytes)).where(revisions.c.digest.in_(theirs))
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one() or 0)

    def referenced(self) -> set[str]:
        """The digests that some name's current revision or history holds."""
        with self._database.read() as connection:
            return set(connection.execute(select(history.c.digest).distinct()).scalars())
