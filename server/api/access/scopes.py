"""Who may do what: each route declares the scope it needs, and a guard compares it with that of the key.

The guard is a dependency of the whole application, so it runs once the router has matched. It reads what the
matched endpoint declares and never looks at a path; an endpoint that declares nothing is closed to everybody.
It runs before anything else of a route, so nobody who is refused has their body read.

Keys are those that the server was started with, or those of tenants. What a tenant's key may do is on the
key: ask for answers, manage the tenant's own adapters, or everything. Routes that such keys open keep tenants
apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Request
from starlette.types import Scope

from manylora.adapters.registry.tenants.records import TenantRecord
from manylora.adapters.registry.whose import EVERYBODY, Whose

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_DECLARED: Final = "manylora_scope"  # the attribute of an endpoint that holds its scope
CALLER: Final = "manylora.caller"  # the entry of an ASGI scope that holds the caller's
CALLERS_TENANT: Final = "manylora.tenant"  # the entry with the caller's tenant, where it is one's key
CALLERS_RIGHTS: Final = "manylora.rights"  # the entry with what a tenant's key is for
LEAST_PRIORITY: Final = "manylora.least_priority"  # the entry with what the caller's key allows
ADDED_HEADERS: Final = "manylora.added_headers"  # the entry with what tells headers of the answer
ON_BEHALF: Final = "manylora.on_behalf"  # the entry with which the server asks itself; no client can


class KeyScope(IntEnum):
    """What a key may do, or a route needs. A higher scope includes the lower ones."""

    OPEN = 0  # no key is needed
    TENANT = 1  # ask for answers, within what one tenant may see
    INFER = 2  # ask for answers
    MANAGE = 3  # manage adapters: a tenant's own, with those of its keys that may
    ADMIN = 4  # manage everybody's adapters and tenants, and see where things are on the server


OPEN, TENANT, INFER, MANAGE, ADMIN = KeyScope


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
    caller = scope.get(CALLER, OPEN)
    return caller if isinstance(caller, KeyScope) else OPEN


def caller_tenant(scope: Scope) -> TenantRecord | None:
    """The tenant whose key a request came with; None for keys that are no tenant's."""
    tenant = scope.get(CALLERS_TENANT)
    return tenant if isinstance(tenant, TenantRecord) else None


def least_priority(scope: Scope) -> int | None:
    """The priority that a caller's requests may have at least, which is the earliest; None: any."""
    found = scope.get(LEAST_PRIORITY)
    return found if isinstance(found, int) else None


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
