"""The registry: which names exist, which revision each points to, and what became of loading them.

It lives in SQLite or PostgreSQL and may be shared by several servers. Every mutation is one
transaction and has a place in one order, its *generation*, so that a server can ask what changed
since it last looked. The revisions' files are in a :class:`~manylora.adapters.store.store.RevisionStore`.

All methods block on the database; call them from a worker thread. Any of them may raise StoreError.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, bindparam, delete, insert, or_

from manylora.adapters.errors import AdapterDeleted, AdapterExists, AdapterNameError, AdapterNotFound
from manylora.adapters.mix import check_name, is_name
from manylora.adapters.registry.aliases import AliasRegistry
from manylora.adapters.registry.arms import ArmRegistry
from manylora.adapters.registry.reading import ReadingRegistry
from manylora.adapters.registry.records import AliasRecord, NameRecord, RevisionRecord, State
from manylora.adapters.registry.recovery import UpkeepRegistry
from manylora.adapters.registry.rows import (
    alias_records,
    find,
    forget_revisions,
    is_tag,
    put_change,
    put_history,
    put_revision,
    put_tags,
    require,
    revision_records,
    storable,
)
from manylora.adapters.registry.schema import Database, names

__all__ = ["AliasRecord", "NameRecord", "Registry", "RevisionRecord", "State"]

MAX_TAGS = 32
HISTORY = 16  # revisions of a name that stay, to roll back to

_DIGEST_PREFIX = re.compile(r"[0-9a-f]{4,64}")


class Registry(ReadingRegistry, AliasRegistry, ArmRegistry, UpkeepRegistry):
    """Names, revisions and aliases in a database. Thread-safe, and shared by processes."""

    def __init__(self, url: str, *, owner: str = "", history: int = HISTORY) -> None:
        """Open the registry at ``url`` (sqlite:///PATH or postgresql://…), creating it where it is new.

        ``owner`` names this process; what it is loading or draining is known by that. ``history`` is how
        many revisions of a name stay, the current one included.

        Raises:
            StoreError: the URL or the database can't be used.
        """
        self._owner = owner
        self._history = history
        super().__init__(Database(url))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections."""
        self._database.close()

    def begin(
        self, name: str, source: str, tags: Collection[str] = (), *, announced: NameRecord | None = None
    ) -> NameRecord:
        """Announce that a revision for ``name`` is on its way, perhaps again.

        A name that serves goes on serving; any other is LOADING until :meth:`publish` or :meth:`fail`.
        ``announced`` is what an earlier call returned.

        Raises:
            AdapterNameError: the name or a tag is malformed.
            AdapterExists: the name is that of an alias.
            AdapterDeleted: the name was deleted since it was ``announced``.
        """
        check_name(name)
        check_tags(tags)
        with self._database.write() as (connection, generation):
            _refuse_alias(connection, name)
            before = find(connection, name)
            _refuse_deleted(name, before, announced)
            loading = {"state": State.LOADING.value, "owner": self._owner, "source": storable(source)}
            if before is None:
                _insert(connection, name, loading)
                put_tags(connection, name, tags)
            elif before.state in {State.READY, State.DRAINING}:
                _update(connection, name, {"error": None})
            else:
                _update(connection, name, {**loading, "error": None})
                put_tags(connection, name, tags)
            put_change(connection, name, generation)
            return require(connection, name)

    def publish(
        self,
        name: str,
        revision: RevisionRecord,
        *,
        replace: bool,
        source: str,
        tags: Collection[str] | None = None,
        announced: NameRecord | None = None,
    ) -> NameRecord:
        """Make ``name`` mean ``revision`` from now on; the name need not have been ``announced``.

        Without ``tags`` those it has stay.

        Raises:
            AdapterNameError: the name or a tag is malformed.
            AdapterExists: the name serves already and ``replace`` is false, or it is that of an alias.
            AdapterDeleted: the name was deleted since it was ``announced``.
        """
        check_name(name)
        check_tags(tags or ())
        with self._database.write() as (connection, generation):
            _refuse_alias(connection, name)
            before = find(connection, name)
            _refuse_deleted(name, before, announced)
            if before is not None and not replace and before.state is State.READY:
                raise AdapterExists(f"the name {name!r} is taken; unload it first or ask to replace it")
            put_revision(connection, revision)
            if before is None:
                _insert(connection, name, {"state": State.LOADING.value, "source": ""})
            self._point(connection, name, revision.digest, generation, {"source": storable(source)})
            if tags is not None:
                put_tags(connection, name, tags)
            return require(connection, name)

    def fail(self, name: str, error: str) -> None:
        """Record why the latest revision for ``name`` could not be published.

        A name that serves goes on serving. One that was removed meanwhile stays removed.
        """
        with self._database.write() as (connection, generation):
            before = find(connection, name)
            if before is None:
                return
            failed = {"state": State.FAILED.value, "owner": ""} if before.state is State.LOADING else {}
            _update(connection, name, {**failed, "error": storable(error)})
            put_change(connection, name, generation)

    def rollback(self, name: str, digest_prefix: str) -> NameRecord:
        """Make ``name`` point to an earlier revision again, by its digest or the beginning of it.

        Raises:
            AdapterNotFound: no such name, or not exactly one such revision in its history.
        """
        with self._database.write() as (connection, generation):
            past = require(connection, name).history
            known = bool(_DIGEST_PREFIX.fullmatch(digest_prefix))
            found = [digest for digest in past if known and digest.startswith(digest_prefix)]
            if len(found) != 1:
                which = "several revisions that begin with" if found else "no revision"
                raise AdapterNotFound(f"adapter {name!r} has {which} {digest_prefix[:64]!r}")
            source = revision_records(connection, found)[found[0]].source
            self._point(connection, name, found[0], generation, {"source": source})
            return require(connection, name)

    def drain(self, name: str) -> None:
        """Mark ``name`` as being deleted.

        Raises:
            AdapterNotFound: no such name.
        """
        self._set(name, {"state": State.DRAINING.value, "owner": self._owner})

    def remove(self, name: str, *, state: State | None = None) -> NameRecord:
        """Forget ``name``; returns what was there. Its revisions' files are not touched.

        With ``state``, only a name in that state is removed: one that was published again while it
        drained is kept.

        Raises:
            AdapterNotFound: no such name, or not in that state.
        """
        with self._database.write() as (connection, generation):
            before = require(connection, name)
            if state is not None and before.state is not state:
                raise AdapterNotFound(
                    f"the adapter {name!r} is not {state.value}: it is {before.state.value}"
                )
            connection.execute(delete(names).where(names.c.name == name))
            forget_revisions(connection, before.history)
            put_change(connection, name, generation)
            return before

    def set_pinned(self, name: str, pinned: bool) -> None:
        """Pin or unpin ``name``.

        Raises:
            AdapterNotFound: no such name.
        """
        self._set(name, {"pinned": pinned})

    def touch(self, used: Mapping[str, float]) -> None:
        """Record when names were last used, in unix seconds; unknown names and earlier times are skipped."""
        rows = [{"of": name, "at": at} for name, at in sorted(used.items()) if is_name(name)]
        if not rows:
            return
        earlier = or_(names.c.last_used.is_(None), names.c.last_used < bindparam("at"))
        statement = names.update().where(names.c.name == bindparam("of"), earlier)
        with self._database.write_quietly() as connection:  # no news to other servers
            connection.execute(statement.values(last_used=bindparam("at")), rows)

    def _point(
        self, connection: Connection, name: str, digest: str, generation: int, more: Mapping[str, Any]
    ) -> None:
        ready = {"digest": digest, "state": State.READY.value, "error": None, "owner": ""}
        _update(connection, name, {**ready, **more})
        put_history(connection, name, digest, generation, self._history)
        put_change(connection, name, generation)

    def _set(self, name: str, values: Mapping[str, Any]) -> None:
        with self._database.write() as (connection, generation):
            require(connection, name)
            _update(connection, name, values)
            put_change(connection, name, generation)


def check_tags(tags: Collection[str]) -> None:
    """Raise :class:`AdapterNameError` unless these may be tags: at most 32, each of 1 to 64 characters."""
    if len(tags) > MAX_TAGS:
        raise AdapterNameError(f"an adapter has at most {MAX_TAGS} tags")
    for tag in tags:
        if not is_tag(tag):
            raise AdapterNameError(
                f"{tag[:80]!r} is not a tag: use 1 to 64 letters, digits, '.', '_', ':', '/', '=' or '-', "
                "starting with a letter or digit"
            )


def _refuse_alias(connection: Connection, name: str) -> None:
    if alias_records(connection, name):
        raise AdapterExists(f"the name {name!r} is that of an alias")


def _refuse_deleted(name: str, now: NameRecord | None, announced: NameRecord | None) -> None:
    """Raise AdapterDeleted if a deletion was asked for after the announcement; one before it gives way."""
    if announced is None or announced.state is State.DRAINING:
        return
    if now is None or now.created != announced.created or now.state is State.DRAINING:
        raise AdapterDeleted(f"the adapter {name!r} was deleted while it was being published")


def _insert(connection: Connection, name: str, values: Mapping[str, Any]) -> None:
    now = time.time()
    row = {"name": name, "pinned": False, "created": now, "updated": now, "owner": "", **values}
    connection.execute(insert(names).values(row))


def _update(connection: Connection, name: str, values: Mapping[str, Any]) -> None:
    row = {"updated": time.time(), **values}
    connection.execute(names.update().where(names.c.name == name).values(row))
