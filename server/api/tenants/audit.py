"""``GET /v1/audit``: what was done to adapters, aliases and tenants, by whom."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field

from manylora.adapters.registry.tenants.audit import AuditRecord
from manylora.server.api.access.scopes import ADMIN, needs
from manylora.server.api.files.pages import Parameters
from manylora.server.api.http import limits
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.state import ServiceState

router = APIRouter(prefix="/v1/audit", tags=["tenants"])

MAX_RECORDS = 10_000
_LATEST = 2**40  # unix seconds
Text = Annotated[str | None, Field(max_length=limits.MAX_USER_LENGTH, pattern=r"^[^\x00]*$")]


class AuditParameters(Parameters):
    """Query parameters that say which actions are told."""

    who: Text = Field(None, description="The id of a tenant's key, 'admin-api-key', 'api-key' or 'file'.")
    tenant: Text = Field(None, description="Whose key it was.")
    action: Text = Field(None, description="Method and path of the route: 'PATCH /v1/tenants/{tenant}'.")
    target: Text = Field(None, description="What the path names.")
    since: float = Field(0, ge=0, le=_LATEST, alias="from", description="Unix seconds.")
    until: float = Field(_LATEST, ge=0, le=_LATEST, alias="to", description="Unix seconds.")
    limit: int = Field(100, ge=1, le=MAX_RECORDS)


@router.get("", summary="What was done, by whom")
@needs(ADMIN)
async def read_audit(service: ServiceState, asked: Annotated[AuditParameters, Query()]) -> Response:
    """Actions of all servers of the registry, the latest first. For the next page say ``to``."""
    wanted = {"who": asked.who, "tenant": asked.tenant, "action": asked.action, "target": asked.target}
    where = {what: value for what, value in wanted.items() if value is not None}
    await service.tenants.audit.save()
    records = await asyncio.to_thread(
        lambda: service.adapters.registry.audit.read(
            where=where, since=asked.since, until=asked.until, limit=asked.limit + 1
        )
    )
    data = [_json(record) for record in records[: asked.limit]]
    return Json({"object": "list", "data": data, "has_more": len(records) > asked.limit})


def _json(record: AuditRecord) -> dict[str, Any]:
    return {"object": "audit", **asdict(record)}
