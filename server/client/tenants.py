"""The tenants of a running server and their keys, as methods of one object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack
from urllib.parse import quote

from manylora.server.client.connection import Answer, Connection, given

_PATH = "/v1/tenants"


class TenantFields(TypedDict, total=False):
    """What can be set of a tenant."""

    adapters: Sequence[str]  # names of adapters and aliases that it may use; "*" stands for any characters
    base: bool  # whether it may ask for the base model itself
    default_adapter: str  # a model string, by its own names, in place of the base model; "" ends it
    weight: float  # its share of the engine while others want it too, relative to theirs
    limits: Mapping[str, int]  # all of them; what there is to be limited is in docs/tenants.md
    adapter_limits: Mapping[str, Mapping[str, int]]  # with single adapters, by name or pattern; all of them
    metadata: Mapping[str, str]  # your own notes


class TenantClient:
    """Manages tenants; it takes an admin's key. Its methods raise what those of the client do."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def list(self) -> Iterator[Answer]:
        """Tenants by name, fetched a page at a time as they are wanted."""
        return self._connection.pages(_PATH)

    def show(self, name: str) -> Answer:
        """One tenant: what it may use."""
        found: Answer = self._connection.get(_path(name))
        return found

    def add(self, name: str, *, adopt: bool = False, **settings: Unpack[TenantFields]) -> Answer:
        """Make a tenant.

        Args:
            name: of letters, digits, ".", "_" and "-".
            adopt: adapters and aliases that are called ``name/…`` already are its own from now on.
            settings: see :class:`TenantFields`.
        """
        made: Answer = self._connection.post(
            _PATH, {"name": name, **given({"adopt": adopt or None}), **settings}
        )
        return made

    def change(self, name: str, **settings: Unpack[TenantFields]) -> Answer:
        """Replace what is given of a tenant's settings; the rest stays."""
        changed: Answer = self._connection.patch(_path(name), settings)
        return changed

    def delete(self, name: str, *, adapters: bool = False) -> Answer:
        """Delete a tenant and revoke all its keys; with ``adapters``, what it has of these as well."""
        gone: Answer = self._connection.delete(_path(name), adapters=adapters)
        return gone

    def keys(self, name: str) -> Sequence[Answer]:
        """A tenant's keys, by time, without what opens."""
        found: Sequence[Answer] = self._connection.get(_path(name, "keys"))["data"]
        return found

    def add_key(
        self, name: str, *, expires_in: int | None = None, scopes: Sequence[str] = ("infer",)
    ) -> Answer:
        """Make a key of a tenant; "key" of the answer is told only here.

        Args:
            name: of the tenant.
            expires_in: seconds that it lasts; without them it does for ever.
            scopes: what it is for: infer, manage, admin.
        """
        body = given({"expires_in": expires_in, "scopes": list(scopes)})
        made: Answer = self._connection.post(_path(name, "keys"), body)
        return made

    def rotate_key(
        self, name: str, key_id: str, *, overlap: int = 0, expires_in: int | None = None
    ) -> Answer:
        """Make a key in place of another, which lasts ``overlap`` seconds more."""
        body: dict[str, Any] = {"overlap": overlap, **given({"expires_in": expires_in})}
        made: Answer = self._connection.post(_path(name, "keys", key_id, "rotate"), body)
        return made

    def revoke_key(self, name: str, key_id: str, *, end: bool = False) -> Answer:
        """Let a key open nothing from now on; with ``end``, end what runs with it, too."""
        gone: Answer = self._connection.delete(_path(name, "keys", key_id), end=end)
        return gone

    def usage(
        self,
        tenant: str | None = None,
        *,
        since: int | None = None,
        until: int | None = None,
        by: str = "total",
        limit: int | None = None,
    ) -> Sequence[Answer]:
        """Requests and tokens of tenants, by model.

        Args:
            tenant: only of this one.
            since: of hours that begin then or later, in unix seconds.
            until: of hours that begin before then.
            by: hour, day or total.
            limit: at most so many records.
        """
        query = {"tenant": tenant, "from": since, "to": until, "by": by, "limit": limit}
        found: Sequence[Answer] = self._connection.get("/v1/usage", **query)["data"]
        return found


def _path(*steps: str) -> str:
    return "/".join([_PATH, *(quote(step, safe="") for step in steps)])
