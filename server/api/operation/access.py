"""``GET /v1/access``: what the key that asks may do here, for programs that show only what will work."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from manylora.adapters.registry.tenants.records import KeyRight
from manylora.server.api.access.scopes import (
    ADMIN,
    CALLERS_RIGHTS,
    INFER,
    MANAGE,
    OPEN,
    TENANT,
    CallerScope,
    KeyScope,
    caller_tenant,
    needs,
)
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.state import ServiceState
from manylora.server.service import Service

router = APIRouter(prefix="/v1/access", tags=["operation"])

_INCLUDED: Final = {"infer": INFER, "manage": MANAGE, "admin": ADMIN}


@router.get("", summary="What may this key do?")
@needs(OPEN)
async def access(request: Request, service: ServiceState, caller: CallerScope) -> Response:
    """What opens to the key of this request: ``infer``, ``manage``, ``admin``; nothing to a wrong one.

    ``tenant`` is whose key it is, and ``features`` what this server offers beside answers. Both are told only
    to whom something opens.
    """
    may = _may(request, caller)
    tenant = caller_tenant(request.scope)
    told: dict[str, Any] = {"object": "access", "may": may, "tenant": None if tenant is None else tenant.name}
    return Json(told if not may else {**told, "features": _features(service)})


def _may(request: Request, caller: KeyScope) -> list[str]:
    if caller is TENANT:
        rights = request.scope.get(CALLERS_RIGHTS, ())
        return [right.value for right in (KeyRight.INFER, KeyRight.MANAGE) if right in rights]
    return [name for name, scope in _INCLUDED.items() if caller >= scope]


def _features(service: Service) -> dict[str, bool]:
    config = service.config
    return {
        "keys": bool(config.api_key or config.admin_api_key) or service.tenants.any,
        "training": service.tuning.mode != "off",
        "tenants": service.tenants.any,
        "exports": config.export_root is not None,
    }
