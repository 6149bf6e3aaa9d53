"""``/v1/adapters/{name}/merge``: merged copies, built while the server runs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from manylora.adapters.merge.survival import weak_warning
from manylora.adapters.mix import parse_mix
from manylora.server.api.access.scopes import ADMIN, needs
from manylora.server.api.admin.adapters import DeleteParameters, EmptyBody
from manylora.server.api.files.pages import Parameters
from manylora.server.api.http.error_context import blame
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import MAX_MODEL_LENGTH
from manylora.server.api.http.names_in_paths import NAME
from manylora.server.api.http.openapi import BEGUN
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import Cancelled, CopyFailed
from manylora.server.merged.variants import Variant, VariantState
from manylora.server.service import Service

router = APIRouter(prefix=f"/v1/adapters/{NAME}/merge", tags=["merged copies"])

Mix = Annotated[
    str, Path(max_length=MAX_MODEL_LENGTH, description="An adapter, a revision of it, or a mix of several.")
]


class MergeParameters(Parameters):
    """Query parameter that says whether to wait for the merged copy."""

    wait: bool = Field(True, description="Answer when the copy is ready, or at once with 202.")


@router.post("", summary="Merge an adapter or a mix into a copy of the base", responses=BEGUN)
@needs(ADMIN)
async def merge(
    service: ServiceState, name: Mix, asked: Annotated[MergeParameters, Query()], _: EmptyBody
) -> Response:
    """Build a copy of the base's target weights with the mix added in; traffic goes on meanwhile.

    ``name@merged`` as the model then selects it; for a mix, each of its members with ``@merged``. The
    answer says how far the copy's logits are from those of the unmerged mix on a few probe prompts, and in
    ``effect_kept`` which share of the change of weights their rounding has left.
    """
    with blame("name"):
        terms = parse_mix(name)
        variant = await service.adapters.merged.build(terms)
        if asked.wait:
            await service.adapters.merged.finished(variant)
    if variant.state is VariantState.FAILED:
        if variant.stopped.is_set():
            raise Cancelled(f"the merged copy of {variant.model} was freed while this request waited for it")
        raise CopyFailed(f"merging {variant.model} failed: {variant.error}")
    ready = variant.state is VariantState.READY
    return Json(_copy_json(variant, service), status_code=200 if ready else 202)


@router.get("", summary="A merged copy: its state, its size and its measured error")
@needs(ADMIN)
async def merged(service: ServiceState, name: Mix) -> Response:
    """The merged copy of an adapter or a mix; 404 if there is none."""
    with blame("name"):
        return Json(_copy_json(service.adapters.merged.find(parse_mix(name)), service))


@router.delete("", summary="Free a merged copy")
@needs(ADMIN)
async def free(service: ServiceState, name: Mix, asked: Annotated[DeleteParameters, Query()]) -> Response:
    """Refuse new requests at once, let running ones finish until the deadline, then free the memory."""
    with blame("name"):
        freed, running = await service.adapters.merged.free(parse_mix(name), asked.deadline)
    return Json({"bytes_freed": freed, "drained": running == 0, "running": running})


def _copy_json(variant: Variant, service: Service) -> dict[str, Any]:
    error = variant.measured
    return {
        "object": "merged_copy",
        "of": variant.model,
        "state": variant.state.value,
        "automatic": variant.automatic,
        "progress": variant.progress,
        "bytes": variant.nbytes,
        "dtype": service.description["dtype"],
        "base_quantization": service.description["quantization"],
        "seconds": variant.seconds,
        "created": int(variant.created),
        "last_used": int(variant.last_used),
        "running": variant.references,
        "error": variant.error,
        "effect_kept": variant.effect_kept,
        "warning": None if variant.effect_kept is None else weak_warning(variant.effect_kept),
        "measured": None
        if error is None
        else {
            "rows": error.rows,
            "max_logit_difference": error.max_logit_difference,
            "mean_kl": error.mean_kl,
            "top1_agreement": error.top1_agreement,
        },
    }
