"""Reading records from the rows of the registry's tables, and writing them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select, delete, exists, insert, select

from manylora.adapters.errors import AdapterNotFound
from manylora.adapters.mix import is_name, parse_target
from manylora.adapters.registry.records import AliasRecord, NameRecord, RevisionRecord, State
from manylora.adapters.registry.schema import aliases, changes, history, names, revisions, tags

_MAX_PARAMETERS = 500  # of one statement
_MAX_TEXT = 4000  # characters of an error or a source

T = TypeVar("T")


def find(connection: Connection, name: str) -> NameRecord | None:
    """The record of ``name``, if it is registered."""
    if not is_name(name):
        return None
    return next(iter(records(connection, select(names).where(names.c.name == name))), None)


def require(connection: Connection, name: str) -> NameRecord:
    """The record of ``name``.

    Raises:
        AdapterNotFound: it is not registered.
    """
    record = find(connection, name)
    if record is None:
        raise AdapterNotFound(f"no adapter is registered under the name {name[:140]!r}")
    return record


def records(connection: Connection, query: Select[Any]) -> list[NameRecord]:
    """The names that ``query`` selects, in its order, with their tags and history."""
    rows = connection.execute(query).all()
    tagged: dict[str, list[str]] = {row.name: [] for row in rows}
    past: dict[str, list[str]] = {row.name: [] for row in rows}
    for chunk in chunks(tagged):
        for name, tag in connection.execute(
            select(tags.c.name, tags.c.tag).where(tags.c.name.in_(chunk)).order_by(tags.c.tag)
        ):
            tagged[name].append(tag)
        for name, digest in connection.execute(
            select(history.c.name, history.c.digest)
            .where(history.c.name.in_(chunk))
            .order_by(history.c.since.desc())
        ):
            past[name].append(digest)
    return [_name(row, tagged[row.name], past[row.name]) for row in rows]


def put_change(connection: Connection, name: str, generation: int) -> None:
    """Record that ``name`` changed in ``generation``."""
    connection.execute(delete(changes).where(changes.c.name == name))
    connection.execute(insert(changes).values(name=name, generation=generation))


def put_tags(connection: Connection, name: str, values: Iterable[str]) -> None:
    """Make ``values`` the tags of ``name``."""
    connection.execute(delete(tags).where(tags.c.name == name))
    rows = [{"name": name, "tag": tag} for tag in sorted(set(values))]
    if rows:
        connection.execute(insert(tags), rows)


def put_revision(connection: Connection, record: RevisionRecord) -> None:
    """Record a revision; published again, its facts are renewed and its time stays."""
    row: dict[str, Any] = {
        "nbytes": record.nbytes,
        "rank": record.rank,
        "modules": record.modules,
        "total_modules": record.total_modules,
        "kind": storable(record.kind),
        "base_model_name": None if record.base_model_name is None else storable(record.base_model_name),
        "base_fingerprint": record.base_fingerprint,
        "source": storable(record.source),
        "lineage": None if record.lineage is None else json.dumps(dict(record.lineage), allow_nan=False),
        "details": json.dumps(dict(record.details), allow_nan=False),
    }
    changed = revisions.update().where(revisions.c.digest == record.digest).values(**row)
    if connection.execute(changed).rowcount == 0:
        connection.execute(insert(revisions).values(digest=record.digest, created=record.created, **row))


def put_history(connection: Connection, name: str, digest: str, generation: int, keep: int) -> None:
    """Make ``digest`` the latest of the history of ``name``; keep ``keep`` of them, and what aliases name."""
    of_name = history.c.name == name
    connection.execute(delete(history).where(of_name, history.c.digest == digest))
    connection.execute(insert(history).values(name=name, digest=digest, since=generation))
    latest = select(history.c.digest).where(of_name).order_by(history.c.since.desc())
    spared = tuple(
        term.revision
        for alias in alias_records(connection)
        for target, _ in alias.arms
        for term in parse_target(target)
        if term.name == name and term.revision is not None
    )
    beyond = connection.execute(latest.offset(keep)).scalars()
    old = [digest for digest in beyond if not digest.startswith(spared)]
    connection.execute(delete(history).where(of_name, history.c.digest.in_(old)))
    forget_revisions(connection, old)


def forget_revisions(connection: Connection, digests: Sequence[str]) -> None:
    """Delete the facts of those revisions ``digests`` that no name's history holds any more."""
    held = exists().where(history.c.digest == revisions.c.digest)
    for chunk in chunks(digests):
        connection.execute(delete(revisions).where(revisions.c.digest.in_(chunk), ~held))


def revision_records(connection: Connection, digests: Iterable[str]) -> dict[str, RevisionRecord]:
    """The facts of those of ``digests`` that are registered."""
    found = {}
    for chunk in chunks(dict.fromkeys(digests)):
        for row in connection.execute(select(revisions).where(revisions.c.digest.in_(chunk))):
            found[row.digest] = _revision(row)
    return found


def alias_records(connection: Connection, name: str | None = None) -> list[AliasRecord]:
    """All aliases in order of their names, or the one called ``name``."""
    query = select(aliases).order_by(aliases.c.name)
    if name is not None:
        if not is_name(name):
            return []
        query = query.where(aliases.c.name == name)
    return [
        AliasRecord(
            row.name,
            tuple((target, share) for target, share in json.loads(row.arms)),
            row.created,
            row.updated,
        )
        for row in connection.execute(query)
    ]


def require_alias(connection: Connection, name: str) -> AliasRecord:
    """The alias called ``name``.

    Raises:
        AdapterNotFound: there is no such alias.
    """
    found = alias_records(connection, name)
    if not found:
        raise AdapterNotFound(f"there is no alias {name[:140]!r}")
    return found[0]


def storable(text: str) -> str:
    """``text`` shortened, without what a database can't store: NUL and lone surrogates, which are escaped."""
    return text[:_MAX_TEXT].encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def chunks(values: Iterable[T]) -> Iterator[list[T]]:
    """``values`` in pieces that one statement can take as parameters."""
    rest = iter(values)
    while chunk := list(islice(rest, _MAX_PARAMETERS)):
        yield chunk


def _name(row: Row[Any], tagged: Sequence[str], past: Sequence[str]) -> NameRecord:
    return NameRecord(
        name=row.name,
        digest=row.digest,
        state=State(row.state),
        error=row.error,
        pinned=row.pinned,
        tags=tuple(tagged),
        created=row.created,
        updated=row.updated,
        last_used=row.last_used,
        source=row.source,
        history=tuple(past),
        owner=row.owner,
        shared=() if row.shared is None else tuple(json.loads(row.shared)),
        shared_since=() if row.shared_since is None else tuple(json.loads(row.shared_since).items()),
    )


def _revision(row: Row[Any]) -> RevisionRecord:
    return RevisionRecord(
        digest=row.digest,
        nbytes=row.nbytes,
        rank=row.rank,
        modules=row.modules,
        total_modules=row.total_modules,
        kind=row.kind,
        base_model_name=row.base_model_name,
        base_fingerprint=row.base_fingerprint,
        source=row.source,
        created=row.created,
        lineage=None if row.lineage is None else json.loads(row.lineage),
        details=json.loads(row.details),
    )
