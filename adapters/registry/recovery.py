"""Bringing a registry back in agreement with the disk, after processes died or files were lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select

from manylora.adapters.errors import StoreError
from manylora.adapters.registry.records import State
from manylora.adapters.registry.rows import find, forget_revisions, put_change
from manylora.adapters.registry.schema import Database, counter, history, names


@dataclass(frozen=True)
class Agreement:
    """What had to be changed for the registry to agree with the disk."""

    failed: tuple[str, ...]  # names whose current revision is missing
    restored: tuple[str, ...]  # names that had failed for that, and whose revision is there again
    forgotten: tuple[str, ...]  # digests of earlier revisions that are missing


class UpkeepRegistry:
    """What a server does to a registry when it starts, and when processes have died or files gone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def bind(self, identity: str) -> None:
        """Tie a new registry to the artifact directory called ``identity``.

        Raises:
            StoreError: it is tied to another one, whose revisions this directory doesn't have.
        """
        with self._database.write_quietly() as connection:
            if _bound(connection, identity) is None:
                connection.execute(counter.update().values(store=identity))

    def check_bound(self, identity: str) -> None:
        """Raise :class:`StoreError` where :meth:`bind` would; nothing is written."""
        with self._database.read() as connection:
            _bound(connection, identity)

    def abandon(self, name: str, owner: str) -> None:
        """Clean up after a dead process that was loading or draining ``name``, if that is still so.

        A name that never served is gone, and so is one that was being deleted.
        """
        with self._database.write() as (connection, generation):
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

    def lose(self, name: str, digest: str) -> None:
        """Make ``name`` FAILED if it serves the revision ``digest``, whose files are missing."""
        with self._database.write() as (connection, generation):
            of_name = (names.c.name == name, names.c.digest == digest)
            ready = (*of_name, names.c.state == State.READY.value)
            if connection.execute(names.update().where(*ready).values(_lost(digest))).rowcount:
                put_change(connection, name, generation)

    def recover(self, present: Callable[[str], bool]) -> tuple[str, ...]:
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

    def expire(self, seconds: float) -> tuple[str, ...]:
        """Forget names that FAILED so long ago and have never served; returns them.

        Nothing is written where there are none.
        """
        with self._database.read() as connection:
            old = _expired(connection, seconds)
        if not old:
            return ()
        with self._database.write() as (connection, generation):
            found = _expired(connection, seconds)  # as it is now
            for name in found:
                connection.execute(delete(names).where(names.c.name == name))
                put_change(connection, name, generation)
        return tuple(found)

    def agree(self, present: Collection[str]) -> Agreement:
        """Make names whose revision is not ``present`` on disk FAILED, and those READY where it is back."""
        with self._database.write() as (connection, generation):
            failed, restored = _check_current(connection, generation, present)
            forgotten = _check_history(connection, generation, present)
        return Agreement(tuple(failed), tuple(restored), tuple(forgotten))


def _bound(connection: Connection, identity: str) -> str | None:
    """The artifact directory that the registry is tied to, if it is to one.

    Raises:
        StoreError: to another one than ``identity``.
    """
    known: str | None = connection.execute(select(counter.c.store)).scalar_one()
    if known not in {None, identity}:
        raise StoreError(
            "the adapter registry belongs to another artifact directory: servers that share a "
            "registry must share that directory, and a new directory needs a new registry"
        )
    return known


def _check_current(
    connection: Connection, generation: int, present: Collection[str]
) -> tuple[list[str], list[str]]:
    failed, restored = [], []
    query = select(names.c.name, names.c.digest, names.c.state).where(names.c.digest.is_not(None))
    for name, digest, state in connection.execute(query.order_by(names.c.name)).all():
        if state == State.READY.value and digest not in present:
            failed.append(name)
            values = _lost(digest)
        elif state == State.FAILED.value and digest in present:
            restored.append(name)
            values = _ready()
        else:
            continue
        connection.execute(names.update().where(names.c.name == name).values(values))
        put_change(connection, name, generation)
    return failed, restored


def _failed(connection: Connection) -> list[tuple[str, str]]:
    """Name and digest of those that failed though they have a revision."""
    query = select(names.c.name, names.c.digest).where(names.c.digest.is_not(None))
    query = query.where(names.c.state == State.FAILED.value).order_by(names.c.name)
    return [(name, digest) for name, digest in connection.execute(query).all()]


def _expired(connection: Connection, seconds: float) -> list[str]:
    """The names without a revision that failed more than ``seconds`` ago."""
    query = select(names.c.name).where(names.c.digest.is_(None), names.c.state == State.FAILED.value)
    old = query.where(names.c.updated < time.time() - seconds).order_by(names.c.name)
    return list(connection.execute(old).scalars())


def _lost(digest: str) -> dict[str, Any]:
    error = f"the files of revision {digest[:8]} are missing from the store"
    return {"state": State.FAILED.value, "error": error, "updated": time.time()}


def _ready() -> dict[str, Any]:
    return {"state": State.READY.value, "error": None, "updated": time.time()}


def _check_history(connection: Connection, generation: int, present: Collection[str]) -> list[str]:
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
