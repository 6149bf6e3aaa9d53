"""Which adapter or alias a route manages: what a tenant names is its own."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from manylora.adapters.errors import AdapterExists
from manylora.server.api.access.views import CallerView
from manylora.server.api.http.names_in_paths import Name
from manylora.server.service import Service
from manylora.server.tenants.view import TenantView


def _managed_name(view: CallerView, name: Name) -> str:
    return name if view is None else view.own(name)


ManagedName = Annotated[str, Depends(_managed_name)]
"""The registry's name for what a route manages: of a tenant's own, with its name before it or without."""


def check_not_base(service: Service, view: TenantView | None, name: str) -> None:
    """Refuse what a tenant would call like the base model.

    Raises:
        AdapterExists: the registry's ``name`` is called so.
    """
    if view is not None and name == view.tenant.namespace + service.model_name:
        raise AdapterExists(f"{service.model_name!r} is the name of the base model")
