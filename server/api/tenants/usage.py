"""``GET /v1/usage``: what tenants took, by hour, by day or in all."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field

from manylora.adapters.registry.tenants.usage import By, Counts, UsageRecord
from manylora.server.api.access.scopes import ADMIN, needs
from manylora.server.api.files.pages import Parameters
from manylora.server.api.http import limits
from manylora.server.api.http.error_context import blame
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.state import ServiceState

router = APIRouter(prefix="/v1/usage", tags=["tenants"])

MAX_RECORDS = 100_000
_LATEST = 2**40  # unix seconds
_TABLE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}


class UsageParameters(Parameters):
    """Query parameters that say whose usage is told, and of which time."""

    tenant: str | None = Field(None, max_length=limits.MAX_USER_LENGTH, description="The tenant's name.")
    since: int = Field(0, ge=0, le=_LATEST, alias="from", description="Unix seconds.")
    until: int | None = Field(None, ge=0, le=_LATEST, alias="to", description="Unix seconds.")
    by: By = By.TOTAL
    form: Literal["json", "csv"] = Field("json", alias="format", description="Objects, or lines of a table.")
    limit: int = Field(1000, ge=1, le=MAX_RECORDS)


@router.get("", summary="What tenants took", responses=_TABLE)
@needs(ADMIN)
async def read_usage(service: ServiceState, asked: Annotated[UsageParameters, Query()]) -> Response:
    """Requests that have ended and their tokens, of hours that begin within the time that is asked about.

    Tenants that are gone are among them, unless one is named.
    """
    with blame("tenant"):
        tenant = None if asked.tenant is None else service.tenants.get(asked.tenant).id
    await service.tenants.usage.save()
    records = await asyncio.to_thread(
        lambda: service.adapters.registry.usage.read(
            tenant=tenant, since=asked.since, until=asked.until, by=asked.by, limit=asked.limit + 1
        )
    )
    data = [_json(record) for record in records[: asked.limit]]
    if asked.form == "csv":
        return PlainTextResponse(_table(data), media_type="text/csv")
    return Json({"object": "list", "data": data, "has_more": len(records) > asked.limit})


def _table(data: Sequence[Mapping[str, Any]]) -> str:
    """Lines with a head, of all but the kind of object."""
    written = io.StringIO()
    columns = ["start", "tenant", "tenant_id", "model", *Counts._fields]
    table = csv.DictWriter(written, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(data)
    return written.getvalue()


def _json(record: UsageRecord) -> dict[str, Any]:
    return {
        "object": "usage",
        "tenant": record.name,
        "tenant_id": record.tenant,
        "model": record.model,
        "start": record.start,
        **record.counts._asdict(),
    }
