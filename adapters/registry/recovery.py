"""What a registry records when processes have died or files have gone, to agree with the disk again.

The caller finds out which processes live and which files are there: ``adapters/registry/cleanup.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from manylora.adapters.registry.records import NameRecord, RevisionRecord, State
from manylora.adapters.registry.rows import (
    find,
    forget_revisions,
    put_change,
    put_revision,
    put_tags,
    records,
    storable,
)
from manylora.adapters.registry.schema import Database, counter, history, names


@dataclass(frozen=True)
class FileChanges:
    """What the registry recorded when it was compared with the files that are on disk."""

    missing: tuple[str, ...]  # names that have failed, as their current revision is missing
    restored: tuple[str, ...]  # names that had failed for that, and whose revision is there again
    forgotten: tuple[str, ...]  # digests of earlier revisions that are missing


@dataclass(frozen=True)
class RestoredRevision:
    """A revision on disk, and a name that it is to have again."""

    name: str
    facts: RevisionRecord
    source: str
    tags: tuple[str, ...]
    since: float  # unix seconds, when it was published under the name


class Recovery:
    """What a server does to a registry when it starts, and when processes have died or files gone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def unfinished(self) -> list[NameRecord]:
        """The names that are being loaded or drained, by whichever process."""
        states = (State.LOADING.value, State.DRAINING.value)
        with self._database.read() as connection:
            return records(connection, select(names).where(names.c.state.in_(states)).order_by(names.c.name))

    def end_unfinished(self, name: str, owner: str) -> None:
        """End what the dead process ``owner`` did to ``name``: loading or draining, if that is still so.

        A name that never served is removed, and so is one that was being deleted.
        """

        def end(connection: Connection, generation: int) -> None:
            record = find(connection, name)
            unfinished = {State.LOADING, State.DRAINING}
            if record is None or record.owner != owner or record.state not in unfinished:
                return
            if record.state is State.LOADING and record.history:
                error = "the server stopped while a revision was being loaded"
                failed = {"state": State.FAILED.value, "error": error, "owner": "", "updated": time.time()}
                connection.execute(names.update().where(names.c.name == name).values(failed))
            else:
                connection.execute(delete(names).where(names.c.name == name))
                forget_revisions(connection, record.history)
            put_change(connection, name, generation)

        self._database.free(end)

    def mark_missing(self, name: str, digest: str) -> None:
        """Make ``name`` FAILED if it serves the revision ``digest``, whose files are missing."""

        def mark(connection: Connection, generation: int) -> None:
            of_name = (names.c.name == name, names.c.digest == digest)
            ready = (*of_name, names.c.state == State.READY.value)
            if connection.execute(names.update().where(*ready).values(_missing(digest))).rowcount:
                put_change(connection, name, generation)

        self._database.free(mark)

    def mark_restored(self, present: Callable[[str], bool]) -> tuple[str, ...]:
        """Make FAILED names READY whose current revision is ``present`` on disk; returns them.

        Nothing is written where there are none.
        """
        with self._database.read() as connection:
            back = [name for name, digest in _failed(connection) if present(digest)]
        if not back:
            return ()
        with self._database.write() as (connection, generation):
            found = [name for name, digest in _failed(connection) if name in back and present(digest)]
            for name in found:
                connection.execute(names.update().where(names.c.name == name).values(_ready()))
                put_change(connection, name, generation)
        return tuple(found)

    def remove_failed(self, seconds: float) -> tuple[str, ...]:
        """Remove names that FAILED more than ``seconds`` ago and have never served; returns them.

        Nothing is written where there are none.
        """
        with self._database.read() as connection:
            old = _long_failed(connection, seconds)
        if not old:
            return ()
        with self._database.write() as (connection, generation):
            found = _long_failed(connection, seconds)  # as it is now
            for name in found:
                connection.execute(delete(names).where(names.c.name == name))
                put_change(connection, name, generation)
        return tuple(found)

    def restore(self, found: Sequence[RestoredRevision]) -> None:
        """Register names that there are not yet, each with its revisions, the latest of ``found`` current."""
        with self._database.write() as (connection, generation):
            for facts in {each.facts.digest: each.facts for each in found}.values():
                put_revision(connection, facts)
            for last in {each.name: each for each in found}.values():
                connection.execute(insert(names).values(_restored(last)))
                put_tags(connection, last.name, last.tags)
            for since, each in enumerate(found, generation):  # the place of each in its name's history
                row = {"name": each.name, "digest": each.facts.digest, "since": since}
                connection.execute(insert(history).values(row))
                put_change(connection, each.name, since)
            connection.execute(counter.update().values(generation=generation + len(found)))

    def match_files(self, present: Collection[str]) -> FileChanges:
        """Make names whose revision is not ``present`` on disk FAILED, and those READY where it is back.

        Earlier revisions that are not there are forgotten.
        """

        def match(connection: Connection, generation: int) -> FileChanges:
            missing, restored = _match_current(connection, generation, present)
            forgotten = _match_history(connection, generation, present)
            return FileChanges(tuple(missing), tuple(restored), tuple(forgotten))

        return self._database.free(match)


def _match_current(
    connection: Connection, generation: int, present: Collection[str]
) -> tuple[list[str], list[str]]:
    missing, restored = [], []
    query = select(names.c.name, names.c.digest, names.c.state).where(names.c.digest.is_not(None))
    for name, digest, state in connection.execute(query.order_by(names.c.name)).all():
        if state == State.READY.value and digest not in present:
            missing.append(name)
            values = _missing(digest)
        elif state == State.FAILED.value and digest in present:
            restored.append(name)
            values = _ready()
        else:
            continue
        connection.execute(names.update().where(names.c.name == name).values(values))
        put_change(connection, name, generation)
    return missing, restored


def _match_history(connection: Connection, generation: int, present: Collection[str]) -> list[str]:
    of_name = history.c.name == names.c.name
    earlier = select(history.c.name, history.c.digest).join(names, of_name)
    forgotten = set()
    for name, digest in connection.execute(earlier.where(history.c.digest != names.c.digest)).all():
        if digest not in present:
            forgotten.add(digest)
            connection.execute(delete(history).where(history.c.name == name, history.c.digest == digest))
            put_change(connection, name, generation)
    forget_revisions(connection, sorted(forgotten))
    return sorted(forgotten)


def _failed(connection: Connection) -> list[tuple[str, str]]:
    """Name and digest of those that failed though they have a revision."""
    query = select(names.c.name, names.c.digest).where(names.c.digest.is_not(None))
    query = query.where(names.c.state == State.FAILED.value).order_by(names.c.name)
    return [(name, digest) for name, digest in connection.execute(query).all()]


def _long_failed(connection: Connection, seconds: float) -> list[str]:
    """The names without a revision that failed more than ``seconds`` ago."""
    query = select(names.c.name).where(names.c.digest.is_(None), names.c.state == State.FAILED.value)
    old = query.where(names.c.updated < time.time() - seconds).order_by(names.c.name)
    return list(connection.execute(old).scalars())


def _restored(last: RestoredRevision) -> dict[str, Any]:
    """The row of a name whose current revision is ``last``."""
    return {
        "name": last.name,
        "digest": last.facts.digest,
        "state": State.READY.value,
        "error": None,
        "pinned": False,
        "created": last.since,
        "updated": time.time(),
        "source": storable(last.source),
        "owner": "",
    }


def _missing(digest: str) -> dict[str, Any]:
    error = f"the files of revision {digest[:8]} are missing from the store"
    return {"state": State.FAILED.value, "error": error, "updated": time.time()}


def _ready() -> dict[str, Any]:
    return {"state": State.READY.value, "error": None, "updated": time.time()}
