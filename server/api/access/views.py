"""The names of adapters as the caller of a request sees them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from manylora.adapters.mix import format_mix
from manylora.adapters.registry.tenants.records import TenantRecord
from manylora.server.api.access.scopes import caller_tenant
from manylora.server.names.aliases import target_terms
from manylora.server.names.view import View, shown_terms
from manylora.server.service import Service
from manylora.server.tenants.view import TenantView
from manylora.server.vllm.pods import PodView


def view_of(service: Service, tenant: TenantRecord | None) -> TenantView | None:
    """The names as a tenant sees them; None: as the registry has them."""
    return None if tenant is None else service.view_of(tenant)


def names_of(service: Service, tenant: TenantRecord | None) -> TenantView | PodView | None:
    """The names that may be asked for: as a tenant sees them, or, if it is no tenant, as this server does."""
    return service.pods.view if tenant is None else service.view_of(tenant)


def _names_of(request: Request) -> TenantView | PodView | None:
    return names_of(request.app.state.service, caller_tenant(request.scope))


CallerNames = Annotated[TenantView | PodView | None, Depends(_names_of)]
"""The names that the caller may ask for, as a parameter of routes; None: as the registry has them."""


def _view_of(request: Request) -> TenantView | None:
    return view_of(request.app.state.service, caller_tenant(request.scope))


CallerView = Annotated[TenantView | None, Depends(_view_of)]
"""The names as the caller sees them, as a parameter of routes; None: as the registry has them."""


def shown_target(target: str, base: str, view: View | None) -> str:
    """A target of an alias, where the base model stands under its name, as the caller calls it."""
    return (
        target
        if view is None or target == base
        else format_mix(shown_terms(target_terms(target, base), view))
    )
