"""The registry's table of names: which revision each points to, and what became of loading it."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, or_, select

from manylora.adapters.errors import AdapterDeleted, AdapterExists, AdapterNotFound
from manylora.adapters.mix import check_name, is_name
from manylora.adapters.registry.records import NameRecord, RevisionRecord, State
from manylora.adapters.registry.rows import (
    alias_records,
    find,
    forget_revisions,
    put_change,
    put_history,
    put_revision,
    put_tags,
    records,
    require,
    revision_records,
    storable,
)
from manylora.adapters.registry.schema import Database, names
from manylora.adapters.registry.tags import check_tags

MAX_PAGE = 1000  # names of one page

_DIGEST_PREFIX = re.compile(r"[0-9a-f]{4,64}")


class Names:
    """The names of a registry, and their life from the first announcement to the removal."""

    def __init__(self, database: Database, *, owner: str, history: int) -> None:
        """Use the tables of ``database``. ``owner`` is recorded with what this process loads and drains.

        ``history`` is how many revisions of a name stay, the current one included.
        """
        self._database = database
        self._owner = owner
        self._history = history

    def get(self, name: str) -> NameRecord:
        """The record of ``name``.

        Raises:
            AdapterNotFound: it is not registered.
        """
        with self._database.read() as connection:
            return require(connection, name)

    def page(self, *, after: str = "", limit: int = 100) -> list[NameRecord]:
        """The first ``limit`` names after ``after``, in the order of their bytes.

        Raises:
            AdapterNameError: ``after`` is no name.
            ValueError: ``limit`` is not between 1 and 1000.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"limit must be between 1 and {MAX_PAGE}")
        if after:
            check_name(after)
        query = select(names).where(names.c.name > after)
        with self._database.read() as connection:
            return records(connection, query.order_by(names.c.name).limit(limit))

    def announce(
        self, name: str, source: str, tags: Collection[str] = (), *, announced: NameRecord | None = None
    ) -> NameRecord:
        """Announce that a revision for ``name`` is on its way, perhaps again.

        A name that serves goes on serving; any other is LOADING until :meth:`set_revision` or :meth:`fail`.
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

    def set_revision(
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

        Without ``tags`` those it has stay. Without ``replace`` a name that serves this revision already
        stays as it is.

        Raises:
            AdapterNameError: the name or a tag is malformed.
            AdapterExists: the name serves another and ``replace`` is false, or it is that of an alias.
            AdapterDeleted: the name was deleted since it was ``announced``.
        """
        check_name(name)
        check_tags(tags or ())
        with self._database.write() as (connection, generation):
            _refuse_alias(connection, name)
            before = find(connection, name)
            _refuse_deleted(name, before, announced)
            if before is not None and not replace and before.state is State.READY:
                if before.digest == revision.digest:
                    return before
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

        def record(connection: Connection, generation: int) -> None:
            before = find(connection, name)
            if before is None:
                return
            failed = {"state": State.FAILED.value, "owner": ""} if before.state is State.LOADING else {}
            _update(connection, name, {**failed, "error": storable(error)})
            put_change(connection, name, generation)

        self._database.free(record)

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
        """Delete ``name``; returns what was there. Its revisions' files are not touched.

        With ``state``, only a name in that state is removed: one that was published again while it
        drained is kept.

        Raises:
            AdapterNotFound: no such name, or not in that state.
        """

        def delete_it(connection: Connection, generation: int) -> NameRecord:
            before = require(connection, name)
            if state is not None and before.state is not state:
                raise AdapterNotFound(
                    f"the adapter {name!r} is not {state.value}: it is {before.state.value}"
                )
            connection.execute(delete(names).where(names.c.name == name))
            forget_revisions(connection, before.history)
            put_change(connection, name, generation)
            return before

        return self._database.free(delete_it)

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
        def update(connection: Connection, generation: int) -> None:
            require(connection, name)
            _update(connection, name, values)
            put_change(connection, name, generation)

        self._database.free(update)


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
