"""``/v1/adapters/{name}/export``: standalone models, written on the server's disk."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field

from manylora.adapters.errors import OutputExists
from manylora.adapters.merge.export_plan import MAX_SHARD_BYTES
from manylora.adapters.merge.survival import weak_warning
from manylora.adapters.mix import MixTerm, parse_mix
from manylora.server.api.access.scopes import ADMIN, MANAGE, TENANT, needs
from manylora.server.api.access.views import CallerView
from manylora.server.api.admin.adapters import EmptyBody
from manylora.server.api.admin.merge import Mix
from manylora.server.api.files.pages import Parameters
from manylora.server.api.http.body import RequestBody, parse_body
from manylora.server.api.http.error_answers import error_answer
from manylora.server.api.http.error_context import Blamed, blame
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import MAX_USER_LENGTH
from manylora.server.api.http.names_in_paths import NAME
from manylora.server.api.http.openapi import BEGUN, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.exporting.exports import Export, ExportState, ExportWish
from manylora.server.tenants.view import TenantView

router = APIRouter(prefix=f"/v1/adapters/{NAME}/export", tags=["exports"])

_MIN_SHARD_BYTES, _MAX_SHARD_BYTES = 1 << 20, 1 << 40


class ExportParameters(Parameters):
    """Query parameter that says whether to wait for the export."""

    wait: bool = Field(True, description="Answer when the model is written, or at once with 202.")


class ExportBody(RequestBody):
    """What the result is to be like."""

    directory: str | None = Field(
        None,
        max_length=MAX_USER_LENGTH,
        description="Its name under --export-root. Default: the adapter's name and revision.",
    )
    dtype: Literal["keep", "bf16", "fp16", "fp32"] = Field("keep", description="keep: the base's own.")
    max_shard_size: int = Field(
        MAX_SHARD_BYTES,
        ge=_MIN_SHARD_BYTES,
        le=_MAX_SHARD_BYTES,
        description="Bytes of one file, and of the memory that merging takes.",
    )
    verify: bool = Field(True, description="Load it with transformers and compare its logits.")


@router.post(
    "",
    summary="Write the base with an adapter or a mix merged in as a standalone model",
    responses=BEGUN,
    openapi_extra=documented(ExportBody, {"bf16": example("In bfloat16", {"dtype": "bf16"})}, required=False),
)
@needs(MANAGE)
async def export(
    service: ServiceState,
    view: CallerView,
    name: Mix,
    asked: Annotated[ExportParameters, Query()],
    body: Annotated[ExportBody, Depends(parse_body(ExportBody, optional=True))],
) -> Response:
    """A process of its own writes it, so that answers are not held up; one after the other.

    The directory appears as a whole once its logits have been compared with those of the base with the
    adapters beside it. Of an export that fails or is cancelled nothing is left.
    """
    dtype = None if body.dtype == "keep" else body.dtype
    wish = ExportWish(body.directory, dtype, body.max_shard_size, body.verify, _whose(view))
    with blame("name"), blame("directory", OutputExists):
        terms = await service.adapters.resolver.look_up(_own_terms(view, name))
        begun = service.exports.begin(terms, wish)
        if asked.wait:
            await service.exports.finished(begun)
        if begun.error is not None:
            raise begun.error
    return Json(_export_json(begun, view), 200 if begun.state is ExportState.READY else 202)


@router.get("", summary="The latest export of an adapter or a mix: its state, and what the comparison found")
@needs(MANAGE)
async def show_export(service: ServiceState, view: CallerView, name: Mix) -> Response:
    """The latest export of an adapter or a mix; 404 if there is none since this server started."""
    with blame("name"):
        return Json(_export_json(service.exports.find(_own_terms(view, name), _whose(view)), view))


@router.delete("", summary="Cancel an export")
@needs(MANAGE)
async def cancel_export(service: ServiceState, view: CallerView, name: Mix, _: EmptyBody) -> Response:
    """End an export and remove what it has written. One that has ended stays as it is."""
    with blame("name"):
        found = service.exports.find(_own_terms(view, name), _whose(view))
    await service.exports.cancel(found)
    return Json(_export_json(found, view))


def _own_terms(view: TenantView | None, name: str) -> tuple[MixTerm, ...]:
    """The mix that is to be exported; a tenant exports its own adapters only."""
    terms = parse_mix(name)
    if view is None:
        return terms
    return tuple(replace(term, name=view.own(term.name)) for term in terms)


def _whose(view: TenantView | None) -> str:
    return "" if view is None else view.tenant.name


def _export_json(export: Export, view: TenantView | None) -> dict[str, Any]:
    return {
        "object": "export",
        "of": export.model,
        "directory": str(export.out) if view is None else export.out.name,
        "state": export.state.value,
        "progress": export.written / export.nbytes if export.nbytes else 0.0,
        "bytes": export.nbytes,
        "files": export.files,
        "seconds": export.seconds,
        "created": int(export.created),
        "measured": export.measured,
        "effect_kept": export.effect_kept,
        "warning": None if export.effect_kept is None else weak_warning(export.effect_kept),
        "error": None if export.error is None else _error_json(export.error, view),
    }


def _error_json(error: Exception, view: TenantView | None) -> dict[str, Any]:
    answer = error_answer(Blamed(error, "name"), ADMIN if view is None else TENANT)
    told: dict[str, Any] = answer.body["error"]
    return told
