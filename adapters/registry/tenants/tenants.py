"""The registry's tenants and their keys: made, changed and revoked in one transaction each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update

from manylora.adapters.errors import TenantExists, TenantNotFound
from manylora.adapters.registry.rows import put_change
from manylora.adapters.registry.schema import Database, changes, names
from manylora.adapters.registry.tenants.records import (
    KeyRecord,
    KeyRight,
    TenantLimits,
    TenantRecord,
    TenantSettings,
    digest_of_key,
    is_tenant_name,
    new_key,
    prefix_of_key,
)
from manylora.adapters.registry.tenants.tables import NEWS, keys, tenants

MAX_TENANTS: Final = 10_000
MAX_KEYS: Final = 64  # of one tenant
_TOLD_SECONDS: Final = 60.0  # that a key whose time is over stays, for other servers to see


@dataclass(frozen=True)
class Snapshot:
    """All tenants and keys at one moment."""

    generation: int  # in which one of them last changed
    tenants: tuple[TenantRecord, ...]  # by name
    keys: tuple[KeyRecord, ...]  # by time


class Tenants:
    """Tenants by name, each with keys. Blocks on the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def snapshot(self, since: int = -1) -> Snapshot | None:
        """Everything, if something has changed after the generation ``since``; else None."""
        with self._database.read() as connection:
            latest = select(changes.c.generation).where(changes.c.name == NEWS)
            generation = connection.execute(latest).scalar() or 0
            if generation <= since:
                return None
            records = connection.execute(select(tenants).order_by(tenants.c.name))
            known = connection.execute(select(keys).order_by(keys.c.created, keys.c.id))
            return Snapshot(generation, tuple(map(_tenant, records)), tuple(map(_key, known)))

    def add(self, name: str, settings: TenantSettings) -> TenantRecord:
        """Make a tenant.

        Raises:
            TenantExists: there is one of that name, or there are as many as there may be.
        """
        record = TenantRecord(uuid4().hex, name, time.time(), settings)
        with self._database.write() as (connection, generation):
            if _find(connection, name) is not None:
                raise TenantExists(f"there is a tenant {name!r} already")
            if connection.execute(select(func.count()).select_from(tenants)).scalar_one() >= MAX_TENANTS:
                raise TenantExists(f"there are {MAX_TENANTS} tenants, and can't be more")
            row = {"id": record.id, "name": name, "created": record.created, "settings": _json(settings)}
            connection.execute(insert(tenants).values(row))
            put_change(connection, NEWS, generation)
        return record

    def change(self, name: str, edit: Callable[[TenantSettings], TenantSettings]) -> TenantRecord:
        """Replace a tenant's settings by what ``edit`` makes of them, in one step.

        Raises:
            TenantNotFound: there is none of that name.
        """
        with self._database.write() as (connection, generation):
            before = _require(connection, name)
            settings = edit(before.settings)
            changed = update(tenants).where(tenants.c.id == before.id)
            connection.execute(changed.values(settings=_json(settings)))
            put_change(connection, NEWS, generation)
        return TenantRecord(before.id, before.name, before.created, settings)

    def remove(self, name: str) -> TenantRecord:
        """Delete a tenant with all its keys; returns what it was.

        Raises:
            TenantNotFound: there is none of that name.
        """

        def delete_it(connection: Connection, generation: int) -> TenantRecord:
            before = _require(connection, name)
            connection.execute(delete(tenants).where(tenants.c.id == before.id))
            _share_no_more(connection, name, generation)
            put_change(connection, NEWS, generation)
            return before

        return self._database.free(delete_it)

    def add_key(
        self,
        name: str,
        lifetime: float | None = None,
        scopes: Collection[KeyRight] = (KeyRight.INFER,),
        priority: int = 0,
    ) -> tuple[KeyRecord, str]:
        """Make a key of a tenant, which lasts ``lifetime`` seconds; the key itself can never be had again.

        Raises:
            TenantNotFound: there is none of that name.
            TenantExists: it has as many keys as it may have.
        """
        with self._database.write() as (connection, generation):
            made = _add_key(connection, _require(connection, name), lifetime, scopes, priority)
            put_change(connection, NEWS, generation)
        return made

    def rotate_key(
        self, name: str, key_id: str, *, overlap: float, lifetime: float | None = None
    ) -> tuple[KeyRecord, str]:
        """Make a key in place of another and for the same; that lasts ``overlap`` seconds more at most.

        Raises:
            TenantNotFound: there is no such tenant, or it has no such key.
            TenantExists: it has as many keys as it may have.
        """
        with self._database.write() as (connection, generation):
            tenant = _require(connection, name)
            old = _require_key(connection, tenant, key_id)
            ends = time.time() + overlap
            ends = ends if old.expires is None else min(ends, old.expires)
            connection.execute(update(keys).where(keys.c.id == key_id).values(expires=ends))
            made = _add_key(connection, tenant, lifetime, old.scopes, old.priority)
            put_change(connection, NEWS, generation)
        return made

    def remove_key(self, name: str, key_id: str, *, end: bool = False) -> KeyRecord:
        """Revoke a key; returns what it was. With ``end`` servers are told to end what runs with it.

        Raises:
            TenantNotFound: there is no such tenant, or it has no such key.
        """

        def delete_it(connection: Connection, generation: int) -> KeyRecord:
            before = _require_key(connection, _require(connection, name), key_id)
            row = keys.c.id == key_id
            if end:  # it stays for a while, so that other servers see what became of it
                told = replace(before, expires=time.time(), ended=True)
                connection.execute(update(keys).where(row).values(_key_row(told)))
            else:
                connection.execute(delete(keys).where(row))
            put_change(connection, NEWS, generation)
            return before

        return self._database.free(delete_it)


def _add_key(
    connection: Connection,
    tenant: TenantRecord,
    lifetime: float | None,
    scopes: Collection[KeyRight],
    priority: int,
) -> tuple[KeyRecord, str]:
    now = time.time()
    # Those whose time is over are of no use any more, once all servers know.
    connection.execute(delete(keys).where(keys.c.tenant == tenant.id, keys.c.expires <= now - _TOLD_SECONDS))
    lasting = or_(keys.c.expires.is_(None), keys.c.expires > now)
    owned = select(func.count()).select_from(keys).where(keys.c.tenant == tenant.id, lasting)
    if connection.execute(owned).scalar_one() >= MAX_KEYS:
        raise TenantExists(
            f"the tenant {tenant.name!r} has {MAX_KEYS} keys, and can't have more: revoke some"
        )
    key = new_key()
    expires = None if lifetime is None else now + lifetime
    record = KeyRecord(
        f"key-{uuid4().hex[:24]}",
        tenant.id,
        prefix_of_key(key),
        digest_of_key(key),
        now,
        expires,
        tuple(sorted(set(scopes))),
        priority,
    )
    connection.execute(insert(keys).values(_key_row(record)))
    return record, key


def _share_no_more(connection: Connection, name: str, generation: int) -> None:
    """Take a tenant off those with whom adapters are shared, so that none after it of that name inherits."""
    found = select(names.c.name, names.c.shared, names.c.shared_since)
    with_it = found.where(names.c.shared.contains(json.dumps(name), autoescape=True))
    for adapter, shared, since in connection.execute(with_it).all():
        rest = [each for each in json.loads(shared) if each != name]
        known = {each: at for each, at in json.loads(since or "{}").items() if each != name}
        values = {"shared": json.dumps(rest), "shared_since": json.dumps(known)}
        connection.execute(update(names).where(names.c.name == adapter).values(values))
        put_change(connection, adapter, generation)


def _find(connection: Connection, name: str) -> TenantRecord | None:
    if not is_tenant_name(name):  # PostgreSQL takes no NUL
        return None
    row = connection.execute(select(tenants).where(tenants.c.name == name)).one_or_none()
    return None if row is None else _tenant(row)


def _require(connection: Connection, name: str) -> TenantRecord:
    found = _find(connection, name)
    if found is None:
        raise TenantNotFound(f"there is no tenant {name[:140]!r}")
    return found


def _require_key(connection: Connection, tenant: TenantRecord, key_id: str) -> KeyRecord:
    wanted = select(keys).where(keys.c.tenant == tenant.id, keys.c.id == key_id)
    row = connection.execute(wanted).one_or_none() if is_tenant_name(key_id) else None
    if row is None:
        raise TenantNotFound(f"the tenant {tenant.name!r} has no key {key_id[:140]!r}")
    return _key(row)


def _json(settings: TenantSettings) -> str:
    return json.dumps(asdict(settings))


def _tenant(row: Row[Any]) -> TenantRecord:
    known = json.loads(row.settings)
    settings = TenantSettings(
        tuple(known["adapters"]),
        known["base"],
        known["metadata"],
        _limits(known.get("limits", {})),
        known.get("weight", 1.0),
        {name: _limits(each) for name, each in known.get("adapter_limits", {}).items()},
        known.get("default_adapter"),
    )
    return TenantRecord(row.id, row.name, row.created, settings)


def _limits(known: Mapping[str, int | None]) -> TenantLimits:
    """Those that this version knows: a newer server may have written others besides."""
    return TenantLimits(**{each.name: known.get(each.name) for each in fields(TenantLimits)})


_IN_COLUMNS: Final = ("id", "tenant", "prefix", "digest", "created", "expires")


def _key_row(record: KeyRecord) -> dict[str, Any]:
    known = asdict(record)
    details = {what: value for what, value in known.items() if what not in _IN_COLUMNS}
    return {**{what: known[what] for what in _IN_COLUMNS}, "details": json.dumps(details)}


def _key(row: Row[Any]) -> KeyRecord:
    details = {} if row.details is None else json.loads(row.details)
    return KeyRecord(
        **{what: getattr(row, what) for what in _IN_COLUMNS},
        scopes=tuple(map(KeyRight, details.get("scopes", (KeyRight.INFER,)))),
        priority=details.get("priority", 0),
        ended=details.get("ended", False),
    )
