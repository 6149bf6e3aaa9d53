"""``/v1/fine_tuning/checkpoints/{model}/permissions``: which tenants may use a model, by OpenAI's routes.

A permission is the sharing of an adapter with a tenant, which OpenAI calls a project.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field

from manylora.adapters.errors import AdapterNotFound
from manylora.adapters.format.faults import shown
from manylora.adapters.registry.records import NameRecord
from manylora.server.api.access.scopes import MANAGE, needs
from manylora.server.api.admin.adapters import MAX_SHARES, Share
from manylora.server.api.admin.own_names import ManagedName
from manylora.server.api.admin.watched import WATCHED
from manylora.server.api.files.pages import Parameters, page_answer
from manylora.server.api.http.body import RequestBody, bounded, parse_body
from manylora.server.api.http.error_context import blame
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import MAX_RESPONSE_ID_LENGTH, MAX_TAG_LENGTH
from manylora.server.api.http.names_in_paths import NAME
from manylora.server.api.http.openapi import documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import ObjectNotFound, RequestError
from manylora.server.service import Service

router = APIRouter(prefix="/v1/fine_tuning/checkpoints", tags=["adapters"])

_KIND: Final = "checkpoint.permission"


class PermissionParameters(Parameters):
    """Query parameters that say which permissions to list."""

    after: str | None = Field(None, max_length=MAX_RESPONSE_ID_LENGTH)
    limit: int = Field(10, ge=1, le=100)
    order: Literal["ascending", "descending"] = "descending"
    project_id: str | None = Field(None, max_length=MAX_TAG_LENGTH, description="A tenant, by its name.")


class PermissionBody(RequestBody):
    """Who may use a model as well."""

    project_ids: Annotated[list[Share], bounded(MAX_SHARES, "project_ids")] = Field(
        min_length=1, description="Tenants, by name; '*' is all."
    )


_EXAMPLE = {"tenants": example("For two tenants", {"project_ids": ["acme", "globex"]})}


@router.get(f"/{NAME}/permissions", summary="Who may use a model")
@needs(MANAGE)
async def list_permissions(
    service: ServiceState, name: ManagedName, asked: Annotated[PermissionParameters, Query()]
) -> Response:
    """The tenants with which an adapter is shared, the latest first."""
    with blame("name"):
        record = await _found(service, name)
    found = _permissions(record)
    if asked.order == "descending":
        found.reverse()
    if asked.project_id is not None:
        found = [each for each in found if each["project_id"] == asked.project_id]
    ids = [each["id"] for each in found]
    if asked.after is not None and asked.after not in ids:
        return page_answer(None, asked.limit, dict)
    start = 0 if asked.after is None else ids.index(asked.after) + 1
    return page_answer(found[start : start + asked.limit + 1], asked.limit, dict)


@router.post(
    f"/{NAME}/permissions",
    dependencies=WATCHED,
    summary="Let tenants use a model",
    openapi_extra=documented(PermissionBody, _EXAMPLE),
)
@needs(MANAGE)
async def create_permissions(
    service: ServiceState,
    name: ManagedName,
    body: Annotated[PermissionBody, Depends(parse_body(PermissionBody))],
) -> Response:
    """Share an adapter with tenants, beside those with which it is. Nobody is told whether they exist."""
    with blame("name"):
        await service.adapters.admin.share_more(name, body.project_ids, MAX_SHARES)
        found = _permissions(await _found(service, name))
    made = [each for each in found if each["project_id"] in body.project_ids]
    if len(made) < len(set(body.project_ids)):
        raise RequestError(f"A model may be shared with {MAX_SHARES} tenants at most", "project_ids")
    return page_answer(made, len(made), dict)


@router.delete(
    f"/{NAME}/permissions/{{permission_id}}", dependencies=WATCHED, summary="Let a tenant use a model no more"
)
@needs(MANAGE)
async def delete_permission(service: ServiceState, name: ManagedName, permission_id: str) -> Response:
    """Share an adapter with a tenant no more. Requests that run are completed."""
    with blame("name"):
        found = _permissions(await _found(service, name))
        tenant = next((each["project_id"] for each in found if each["id"] == permission_id), None)
        if tenant is None:
            told = shown(permission_id[:MAX_RESPONSE_ID_LENGTH])[1:-1]
            raise ObjectNotFound(f"No permission found with id '{told}'", "permission_id")
        await service.adapters.admin.share_no_more(name, tenant)
    return Json({"id": permission_id, "object": _KIND, "deleted": True})


async def _found(service: Service, name: str) -> NameRecord:
    if name not in service.adapters.mirror.names:  # another server may have published it a moment ago
        await service.adapters.admin.catch_up()
    record = service.adapters.mirror.names.get(name)
    if record is None:
        raise AdapterNotFound(f"no adapter is registered under the name {name[:140]!r}")
    return record


def _permissions(record: NameRecord) -> list[dict[str, Any]]:
    """The permissions of an adapter, the earliest first."""
    since = dict(record.shared_since)
    found = [
        {
            "id": _id(record.name, tenant),
            "object": _KIND,
            "created_at": int(since.get(tenant, record.created)),
            "project_id": tenant,
        }
        for tenant in record.shared
    ]
    return sorted(found, key=lambda each: (since.get(each["project_id"], record.created), each["project_id"]))


def _id(name: str, tenant: str) -> str:
    """What a permission is known by, on every server: it is made of what it permits."""
    return f"cp_{hashlib.sha256(f'{name} {tenant}'.encode()).hexdigest()[:24]}"  # no name has a space
