"""``/v1/tenants``: make, change and delete tenants; make, rotate and revoke their keys."""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import Field

from manylora.adapters.registry.tenants.records import KeyRight, TenantSettings
from manylora.server.api.access.scopes import ADMIN, needs
from manylora.server.api.files.pages import Parameters, page_answer
from manylora.server.api.http import limits
from manylora.server.api.http.body import parse_body
from manylora.server.api.http.error_context import blame
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.openapi import documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.api.tenants.belongings import check_deletable, delete_names, names_in
from manylora.server.api.tenants.bodies import (
    KeyBody,
    RotationBody,
    TenantBody,
    TenantFields,
    key_json,
    tenant_json,
)
from manylora.server.errors import ObjectInUse
from manylora.server.service import Service

router = APIRouter(prefix="/v1/tenants", tags=["tenants"])

_NEW = example(
    "A tenant with its own adapters and a shared one", {"name": "acme", "adapters": ["acme/*", "shared"]}
)
_CHANGE = example("Other adapters", {"adapters": ["acme/*"]})
_KEY = example("For a month", {"expires_in": 2_592_000})
_ROTATION = example("The old one lasts an hour more", {"overlap": 3600})

Name = Annotated[str, Path(max_length=limits.MAX_USER_LENGTH, description="The tenant's name.")]
KeyId = Annotated[str, Path(max_length=limits.MAX_USER_LENGTH, description="The key's id.")]


class ListParameters(Parameters):
    """Query parameters that say which tenants to list."""

    limit: int = Field(100, ge=1, le=limits.MAX_PAGE)
    after: str = Field("", max_length=limits.MAX_USER_LENGTH)


class DeleteTenantParameters(Parameters):
    """Query parameter that says what becomes of what a tenant has."""

    adapters: bool = Field(False, description="Delete its own adapters and aliases with it.")


class RevokeParameters(Parameters):
    """Query parameter that says what becomes of what runs with a key."""

    end: bool = Field(False, description="End the requests that run with it.")


@router.post(
    "", status_code=201, summary="Make a tenant", openapi_extra=documented(TenantBody, {"new": _NEW})
)
@needs(ADMIN)
async def create(
    service: ServiceState, body: Annotated[TenantBody, Depends(parse_body(TenantBody))]
) -> Response:
    """Let somebody share the server, with keys of its own. From then on nobody is let in without a key."""
    _check_closed(service)
    if not body.adopt:
        await _check_no_names(service, body.name)
    settings = body.over(TenantSettings())
    tenant = await service.tenants.change(lambda registry: registry.add(body.name, settings))
    return Json(tenant_json(tenant), 201)


@router.get("", summary="List tenants")
@needs(ADMIN)
async def list_tenants(asked: Annotated[ListParameters, Query()], service: ServiceState) -> Response:
    """Tenants by name, a page at a time; ``after`` is the id or the name of the last one that is known."""
    tenants = service.tenants.all()
    known = next((tenant.name for tenant in tenants if tenant.id == asked.after), asked.after)
    first = bisect_right(tenants, known, key=lambda tenant: tenant.name)
    return page_answer(tenants[first : first + asked.limit + 1], asked.limit, tenant_json)


@router.get("/{tenant}", summary="One tenant")
@needs(ADMIN)
async def retrieve(service: ServiceState, tenant: Name) -> Response:
    """What a tenant may use."""
    return Json(tenant_json(service.tenants.get(tenant)))


@router.patch(
    "/{tenant}", summary="Change a tenant", openapi_extra=documented(TenantFields, {"change": _CHANGE})
)
@needs(ADMIN)
async def change(
    service: ServiceState, tenant: Name, body: Annotated[TenantFields, Depends(parse_body(TenantFields))]
) -> Response:
    """Replace what is given. Requests that run keep what they have."""
    return Json(
        tenant_json(await service.tenants.change(lambda registry: registry.change(tenant, body.over)))
    )


@router.delete("/{tenant}", summary="Delete a tenant")
@needs(ADMIN)
async def delete(
    service: ServiceState, tenant: Name, asked: Annotated[DeleteTenantParameters, Query()]
) -> Response:
    """Delete a tenant and revoke all its keys. Files, batches and responses that it has stay, for admins.

    Refused while it has adapters or aliases of its own, unless they go as well.
    """
    found = service.tenants.get(tenant)
    if not asked.adapters:
        await _check_no_names(service, tenant)
    await service.adapters.admin.catch_up()
    check_deletable(service, found.namespace)
    gone = await service.tenants.change(lambda registry: registry.remove(tenant))
    await delete_names(service, found.namespace)
    return Json({"id": gone.id, "object": "tenant.deleted", "name": gone.name, "deleted": True})


@router.post(
    "/{tenant}/keys",
    status_code=201,
    summary="Make a key",
    openapi_extra=documented(KeyBody, {"month": _KEY}, required=False),
)
@needs(ADMIN)
async def create_key(
    service: ServiceState, tenant: Name, body: Annotated[KeyBody, Depends(parse_body(KeyBody, optional=True))]
) -> Response:
    """Make a key of a tenant. This answer is the only one that has it."""
    record, key = await service.tenants.change(
        lambda registry: registry.add_key(tenant, body.expires_in, [KeyRight(each) for each in body.scopes])
    )
    return Json({**key_json(record), "key": key}, 201)


@router.get("/{tenant}/keys", summary="List a tenant's keys")
@needs(ADMIN)
async def list_keys(service: ServiceState, tenant: Name) -> Response:
    """The keys that open, by time, without what opens."""
    keys = service.tenants.keys_of(service.tenants.get(tenant))
    return Json({"object": "list", "data": [key_json(key) for key in keys]})


@router.post(
    "/{tenant}/keys/{key_id}/rotate",
    status_code=201,
    summary="Replace a key",
    openapi_extra=documented(RotationBody, {"hour": _ROTATION}, required=False),
)
@needs(ADMIN)
async def rotate_key(
    service: ServiceState,
    tenant: Name,
    key_id: KeyId,
    body: Annotated[RotationBody, Depends(parse_body(RotationBody, optional=True))],
) -> Response:
    """Make a new key; the old one lasts for ``overlap`` seconds more, and no longer than it would have."""
    with blame("key_id"):
        service.tenants.get(tenant)
        record, key = await service.tenants.change(
            lambda registry: registry.rotate_key(
                tenant, key_id, overlap=body.overlap, lifetime=body.expires_in
            )
        )
    return Json({**key_json(record), "key": key}, 201)


@router.delete("/{tenant}/keys/{key_id}", summary="Revoke a key")
@needs(ADMIN)
async def revoke_key(
    service: ServiceState, tenant: Name, key_id: KeyId, asked: Annotated[RevokeParameters, Query()]
) -> Response:
    """The key opens nothing from now on; on other servers of the registry, from half a second later on.

    With ``end`` the requests that run with it are ended, too.
    """
    with blame("key_id"):
        gone = await service.tenants.change(
            lambda registry: registry.remove_key(tenant, key_id, end=asked.end)
        )
    return Json({"id": gone.id, "object": "key.deleted", "deleted": True})


async def _check_no_names(service: Service, tenant: str) -> None:
    """Refuse what would give or take a tenant adapters without a word.

    Raises:
        ObjectInUse: there are adapters or aliases in its namespace.
    """
    await service.adapters.admin.catch_up()
    found = names_in(service, f"{tenant}/")
    if found:
        raise ObjectInUse(
            f"There are {len(found)} adapters and aliases called '{tenant}/…', such as '{found[0]}': say "
            "'adopt' to give them to a new tenant, 'adapters=true' to delete them with it"
        )


def _check_closed(service: Service) -> None:
    """Refuse what would lock everybody out who has no tenant's key.

    Raises:
        ObjectInUse: the server has no keys of its own.
    """
    if not (service.config.api_key or service.config.admin_api_key):
        raise ObjectInUse(
            "Start the server with --admin-api-key first: with tenants, nobody is let in without a key"
        )
