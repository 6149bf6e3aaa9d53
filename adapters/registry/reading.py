"""What can be asked of the registry without changing it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sqlalchemy import select

from manylora.adapters.errors import AdapterNotFound
from manylora.adapters.mix import check_name, is_name
from manylora.adapters.registry.records import NameRecord, RevisionRecord, State
from manylora.adapters.registry.rows import count_names, filtered, is_tag, records, require, revision_records
from manylora.adapters.registry.schema import Database, changes, history, names

MAX_PAGE = 1000  # names of one page

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ReadingRegistry:
    """Questions about names and revisions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, name: str) -> NameRecord:
        """One name.

        Raises:
            AdapterNotFound: it is not registered.
        """
        with self._database.read() as connection:
            return require(connection, name)

    def page(
        self,
        *,
        prefix: str = "",
        tag: str | None = None,
        state: State | None = None,
        after: str = "",
        limit: int = 100,
    ) -> list[NameRecord]:
        """The first ``limit`` names after ``after``, in the order of their bytes.

        Raises:
            AdapterNameError: ``after`` is no name.
            ValueError: ``limit`` is not between 1 and 1000.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"limit must be between 1 and {MAX_PAGE}")
        if after:
            check_name(after)
        if not _may_match(prefix, tag):
            return []
        query = filtered(select(names), prefix, tag, state).where(names.c.name > after)
        with self._database.read() as connection:
            return records(connection, query.order_by(names.c.name).limit(limit))

    def count(self, *, prefix: str = "", tag: str | None = None, state: State | None = None) -> int:
        """How many names there are, or how many match."""
        if not _may_match(prefix, tag):
            return 0
        with self._database.read() as connection:
            return count_names(connection, filtered(select(names.c.name), prefix, tag, state))

    def unfinished(self) -> list[NameRecord]:
        """The names that are being loaded or drained, by whichever process."""
        states = (State.LOADING.value, State.DRAINING.value)
        with self._database.read() as connection:
            return records(connection, select(names).where(names.c.state.in_(states)).order_by(names.c.name))

    def revision(self, digest: str) -> RevisionRecord:
        """The facts of a revision that some name's history holds.

        Raises:
            AdapterNotFound: there is no such revision.
        """
        found = self.revisions([digest])
        if not found:
            raise AdapterNotFound(f"no revision {digest[:64]!r} is registered")
        return found[digest]

    def revisions(self, digests: Iterable[str]) -> dict[str, RevisionRecord]:
        """Those of ``digests`` that are registered, in few queries."""
        sound = [digest for digest in digests if _DIGEST.fullmatch(digest)]
        with self._database.read() as connection:
            return revision_records(connection, sound)

    def referenced(self) -> set[str]:
        """The digests that some name's current revision or history holds."""
        with self._database.read() as connection:
            return set(connection.execute(select(history.c.digest).distinct()).scalars())

    def changes(self, since: int) -> tuple[int, list[str]]:
        """The registry's generation, and the names and aliases that changed after generation ``since``.

        Removed ones are among them. Pins and everything else count; :meth:`touch` does not.
        """
        with self._database.read() as connection:
            generation = self._database.generation(connection)
            if generation <= since:
                return generation, []
            later = select(changes.c.name).where(changes.c.generation > since).order_by(changes.c.name)
            return generation, list(connection.execute(later).scalars())


def _may_match(prefix: str, tag: str | None) -> bool:
    """Whether any name can begin with ``prefix`` and have ``tag``; other texts may not reach the database."""
    return (not prefix or is_name(prefix)) and (tag is None or is_tag(tag))
