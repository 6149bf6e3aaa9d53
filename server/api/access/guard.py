"""The application's first dependency: whose key a request has, and whether it opens the route."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterable
from typing import Final

from fastapi import Request
from pydantic import SecretStr
from starlette.exceptions import HTTPException

from manylora.adapters.registry.tenants.records import NO_LIMITS, KeyRight
from manylora.server.api.access.audited import begin_audit
from manylora.server.api.access.scopes import (
    ADDED_HEADERS,
    ADMIN,
    CALLER,
    CALLERS_RIGHTS,
    CALLERS_TENANT,
    INFER,
    LEAST_PRIORITY,
    MANAGE,
    ON_BEHALF,
    OPEN,
    TENANT,
    KeyScope,
    OnBehalf,
    caller_tenant,
    declared_scope,
)
from manylora.server.errors import AdminKeyNeeded, Unauthorized
from manylora.server.options.settings import Settings
from manylora.server.tenants.directory import TenantDirectory
from manylora.server.tenants.holder import KeyHolder
from manylora.server.tenants.limit_headers import LimitHeaders
from manylora.server.tenants.running import ENDED
from manylora.server.tracing.current import CURRENT_TRACE

_RIGHTS: Final = {TENANT: KeyRight.INFER, MANAGE: KeyRight.MANAGE}  # what of a tenant's key opens a route
_REFUSALS: Final = {
    TENANT: "This key asks for no answers: that takes one with the scope 'infer'",
    MANAGE: "This key does not manage adapters: that takes one with the scope 'manage', or an admin key",
}


class ApiKeySet:
    """The API keys of one sort, hashed. All are compared, in constant time, whichever matches."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def contains(self, *keys: str) -> bool:
        """Whether one of ``keys``, as read from headers, is among the configured ones."""
        digests = [hashlib.sha256(key.encode("latin-1")).digest() for key in keys]
        matches = [hmac.compare_digest(digest, known) for digest in digests for known in self._digests]
        return any(matches)


class Guard:
    """The application's first dependency: lets a request through if its key has the scope of the route.

    The key comes as a bearer token, as from OpenAI's clients, or in ``x-api-key``, as from Anthropic's; where
    both are there, either will do.

    With admin keys, only those have the scope ``ADMIN``; other keys have ``INFER``, and so has everybody if
    there are no others. Without admin keys, one sort opens everything. Without any keys, everybody may do
    everything.

    What a key of a tenant opens is on the key. Where there are tenants, nobody is let in without a key.
    """

    def __init__(
        self, keys: ApiKeySet, admin_keys: ApiKeySet, tenants: TenantDirectory | None = None
    ) -> None:
        self._keys = keys
        self._admin_keys = admin_keys
        self._tenants = tenants

    async def __call__(self, request: Request) -> None:
        """Note the caller's scope for whoever answers, then compare it with the route's.

        Raises:
            Unauthorized: the route needs a key, and this is none.
            AdminKeyNeeded: the key is known, and does not suffice.
            HTTPException: the route declares no scope.
        """
        given = _given_keys(request)
        known, admin = self._keys.contains(*given), self._admin_keys.contains(*given)
        behalf = request.scope.get(ON_BEHALF)
        holder = None if known or admin else self._holder(given, behalf)
        if holder is not None:
            caller = self._take(request, holder)
        elif isinstance(behalf, OnBehalf):
            caller = behalf.scope if behalf.tenant is None else OPEN
        else:
            caller = self._scope(known, admin)
        request.scope[CALLER] = caller
        if (trace := CURRENT_TRACE.get()) is not None:
            trace.matched(*_matched(request))
        needed = declared_scope(request.scope.get("endpoint"))
        if needed is None:
            raise HTTPException(403, "This route is closed: it does not say who may use it")
        if caller > OPEN:
            begin_audit(request, needed, *self._who(holder, known, admin))
        if caller is TENANT and holder is not None:
            if needed is OPEN or _RIGHTS.get(needed) in holder.rights:
                return
            raise AdminKeyNeeded(_REFUSALS.get(needed, "A tenant's key can't do that: it takes an admin's"))
        if caller >= needed:
            return
        if known:
            raise AdminKeyNeeded("This key does not manage adapters: that takes an admin key")
        raise Unauthorized(
            "This server needs an API key: send the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        )

    def _take(self, request: Request, holder: KeyHolder) -> KeyScope:
        """Note what the answer to a request with a tenant's key depends on; what the caller may do."""
        assert self._tenants is not None
        task, ended = asyncio.current_task(), request.scope.get(ENDED)
        if holder.key is not None and task is not None and ended is not None:
            self._tenants.running.add(holder.key.id, ended, task)
        if KeyRight.ADMIN in holder.rights:
            return ADMIN
        tenant = holder.tenant
        request.scope[CALLERS_TENANT] = tenant
        request.scope[CALLERS_RIGHTS] = holder.rights
        request.scope[LEAST_PRIORITY] = 0 if holder.key is None else holder.key.priority
        if tenant.settings.limits != NO_LIMITS or tenant.settings.adapter_limits:
            request.scope[ADDED_HEADERS] = LimitHeaders(self._tenants.meters, tenant)
        return TENANT

    def _holder(self, given: Iterable[str], behalf: object) -> KeyHolder | None:
        tenants = self._tenants
        if tenants is None or not tenants.any:
            return None
        if isinstance(behalf, OnBehalf):
            found = None if behalf.tenant is None else tenants.by_id(behalf.tenant)
            return None if found is None else KeyHolder(found)
        return next((found for found in map(tenants.find, given) if found is not None), None)

    @staticmethod
    def _who(holder: KeyHolder | None, known: bool, admin: bool) -> tuple[str, str]:
        """What the audit log calls the caller, and the tenant whose key it is."""
        if holder is not None:
            return "batch" if holder.key is None else holder.key.id, holder.tenant.name
        return "admin-api-key" if admin else "api-key" if known else "anyone", ""

    def _scope(self, known: bool, admin: bool) -> KeyScope:
        closed = bool(self._keys) or (self._tenants is not None and self._tenants.any)
        if not known and closed and not admin:
            return OPEN
        return ADMIN if admin or not self._admin_keys else INFER


def guard_for(settings: Settings, tenants: TenantDirectory) -> Guard:
    """The guard of a server with the keys of its settings and those of tenants."""

    def keys(given: Iterable[SecretStr]) -> ApiKeySet:
        return ApiKeySet(key.get_secret_value() for key in given)

    return Guard(keys(settings.api_key), keys(settings.admin_api_key), tenants)


def _matched(request: Request) -> tuple[str, str, str | None]:
    tenant = caller_tenant(request.scope)
    return request.method, request.scope["route"].path_format, None if tenant is None else tenant.name


def _given_keys(request: Request) -> tuple[str, str]:
    """The keys of a request, as OpenAI's clients and as Anthropic's send them; empty where there is none."""
    headers = request.headers
    return _bearer(headers.get("authorization", "")), headers.get("x-api-key", "").strip()


def _bearer(header: str) -> str:
    """The key in an Authorization header; empty if there is none."""
    scheme, _, value = header.partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""
