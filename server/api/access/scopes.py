"""Who may do what: each route declares the scope it needs, and a guard compares it with that of the key.

The guard is a dependency of the whole application, so it runs once the router has matched. It reads what the
matched endpoint declares and never looks at a path; an endpoint that declares nothing is closed to everybody.
It runs before anything else of a route, so nobody who is refused has their body read.

Keys are those that the server was started with, or those of tenants. A tenant's key has a scope of its own,
the lowest: routes that declare it answer everybody else as well, and keep tenants apart.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Request
from starlette.exceptions import HTTPException
from starlette.types import Scope

from manylora.adapters.registry.tenants.records import NO_LIMITS, TenantRecord
from manylora.adapters.registry.whose import EVERYBODY, Whose
from manylora.server.errors import AdminKeyNeeded, Unauthorized
from manylora.server.tenants.directory import TenantDirectory

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_DECLARED: Final = "manylora_scope"  # the attribute of an endpoint that holds its scope
_CALLER: Final = "manylora.caller"  # the entry of an ASGI scope that holds the caller's
_TENANT: Final = "manylora.tenant"  # the entry with the caller's tenant, where it is one's key
ADDED_HEADERS: Final = "manylora.added_headers"  # the entry with what tells headers of the answer
ON_BEHALF: Final = "manylora.on_behalf"  # the entry with which the server asks itself; no client can


class KeyScope(IntEnum):
    """What a key may do, or a route needs. A higher scope includes the lower ones."""

    OPEN = 0  # no key is needed
    TENANT = 1  # ask for answers, within what one tenant may see
    INFER = 2  # ask for answers
    ADMIN = 3  # manage adapters and tenants, and see where things are on the server


OPEN, TENANT, INFER, ADMIN = KeyScope


@dataclass(frozen=True, slots=True)
class OnBehalf:
    """For whom the server asks one of its own routes: what they may do, and their tenant by its id."""

    scope: KeyScope
    tenant: str | None = None  # whose scope it is then, if the tenant is still there


def needs(scope: KeyScope) -> Callable[[Endpoint], Endpoint]:
    """Declare the scope of a route; stands between the route's decorator and its function."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _DECLARED, scope)
        return endpoint

    return declare


def declared_scope(endpoint: object) -> KeyScope | None:
    """The scope that an endpoint declares; None if it declares none, so that nobody may use it."""
    scope = getattr(endpoint, _DECLARED, None)
    return scope if isinstance(scope, KeyScope) else None


def caller_scope(scope: Scope) -> KeyScope:
    """What the caller of a request may do; the least as long as the guard has not looked at it."""
    caller = scope.get(_CALLER, OPEN)
    return caller if isinstance(caller, KeyScope) else OPEN


def caller_tenant(scope: Scope) -> TenantRecord | None:
    """The tenant whose key a request came with; None for keys that are no tenant's."""
    tenant = scope.get(_TENANT)
    return tenant if isinstance(tenant, TenantRecord) else None


def _tenant_of(request: Request) -> TenantRecord | None:
    return caller_tenant(request.scope)


CallerTenant = Annotated[TenantRecord | None, Depends(_tenant_of)]
"""The caller's tenant, as a parameter of routes."""


def caller_whose(scope: Scope) -> Whose:
    """Whose files, batches and responses a caller may see: everybody's with the scope ``ADMIN``."""
    if caller_scope(scope) is ADMIN:
        return EVERYBODY
    tenant = caller_tenant(scope)
    return Whose(None if tenant is None else tenant.id)


def _whose_of(request: Request) -> Whose:
    return caller_whose(request.scope)


CallerWhose = Annotated[Whose, Depends(_whose_of)]
"""Whose things the caller may see, as a parameter of routes."""


def _caller_of(request: Request) -> KeyScope:
    return caller_scope(request.scope)


CallerScope = Annotated[KeyScope, Depends(_caller_of)]
"""What the caller may do, as a parameter of routes."""


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

    The keys of ``tenants`` have the scope ``TENANT``. Where there are any, nobody is let in without a key.
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
        tenant: TenantRecord | None = None
        behalf = request.scope.get(ON_BEHALF)
        if self._tenants is not None and self._tenants.any:
            tenant = self._tenant(self._tenants, given, behalf)
        if tenant is not None and not (known or admin):
            caller = TENANT
            request.scope[_TENANT] = tenant
            if self._tenants is not None and tenant.settings.limits != NO_LIMITS:
                meter = self._tenants.meters.of(tenant.id)
                request.scope[ADDED_HEADERS] = partial(meter.headers, tenant.settings.limits)
        elif isinstance(behalf, OnBehalf):
            caller = behalf.scope if behalf.tenant is None else OPEN
        else:
            caller = self._scope(known, admin)
        request.scope[_CALLER] = caller
        needed = declared_scope(request.scope.get("endpoint"))
        if needed is None:
            raise HTTPException(403, "This route is closed: it does not say who may use it")
        if caller >= needed:
            return
        if caller is TENANT:
            raise AdminKeyNeeded("A tenant's key asks for answers only")
        if known:
            raise AdminKeyNeeded("This key does not manage adapters: that takes an admin key")
        raise Unauthorized(
            "This server needs an API key: send the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        )

    @staticmethod
    def _tenant(tenants: TenantDirectory, given: Iterable[str], behalf: object) -> TenantRecord | None:
        if isinstance(behalf, OnBehalf):
            return None if behalf.tenant is None else tenants.by_id(behalf.tenant)
        return next((found for found in map(tenants.find, given) if found is not None), None)

    def _scope(self, known: bool, admin: bool) -> KeyScope:
        closed = bool(self._keys) or (self._tenants is not None and self._tenants.any)
        if not known and closed and not admin:
            return OPEN
        return ADMIN if admin or not self._admin_keys else INFER


def _given_keys(request: Request) -> tuple[str, str]:
    """The keys of a request, as OpenAI's clients and as Anthropic's send them; empty where there is none."""
    headers = request.headers
    return _bearer(headers.get("authorization", "")), headers.get("x-api-key", "").strip()


def _bearer(header: str) -> str:
    """The key in an Authorization header; empty if there is none."""
    scheme, _, value = header.partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""
