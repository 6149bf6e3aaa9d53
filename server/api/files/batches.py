"""``/v1/batches``: many requests of a file, answered at low priority."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Field

from manylora.adapters.format.faults import shown
from manylora.adapters.registry.batches import BatchRecord
from manylora.adapters.registry.whose import Whose
from manylora.server.api.access.scopes import TENANT, CallerWhose, needs
from manylora.server.api.files.expires_after import ExpiresAfter
from manylora.server.api.files.files import found
from manylora.server.api.files.pages import Parameters, page_answer
from manylora.server.api.http import limits
from manylora.server.api.http.body import Metadata, RequestBody, parse_body
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.openapi import documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.batches.batches import OPEN
from manylora.server.batches.lines import ENDPOINTS
from manylora.server.errors import ObjectInUse, ObjectNotFound, RequestError
from manylora.server.service import Service

router = APIRouter(prefix="/v1/batches", tags=["batches"])

_TIMES = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at",
          "cancelled_at")  # fmt: skip


class BatchBody(RequestBody):
    """OpenAI's fields."""

    input_file_id: str = Field(min_length=1, max_length=limits.MAX_RESPONSE_ID_LENGTH)
    endpoint: Literal[
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/v1/score",
        "/v1/rerank",
        "/classify",
        "/v1/compare",
    ]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class ListParameters(Parameters):
    """Query parameters that say which batches to list."""

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, max_length=limits.MAX_RESPONSE_ID_LENGTH)


_EXAMPLES = {
    "Chat": example(
        "Conversations",
        {"input_file_id": "file-abc", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    )
}
assert set(ENDPOINTS) == set(BatchBody.model_fields["endpoint"].annotation.__args__)  # type: ignore[union-attr]


@router.post("", summary="Begin a batch", openapi_extra=documented(BatchBody, _EXAMPLES))
@needs(TENANT)
async def create(
    service: ServiceState,
    whose: CallerWhose,
    body: Annotated[BatchBody, Depends(parse_body(BatchBody))],
) -> Response:
    """Answer every line of a file, each with a model, adapter or mix of its own."""
    file = await found(service, body.input_file_id, whose, "input_file_id")
    if file.purpose != "batch":
        raise RequestError(f"File '{file.id}' is for {file.purpose}, not for 'batch'", "input_file_id")
    expiry = None if body.output_expires_after is None else body.output_expires_after.seconds
    record = await service.batches.create(file.id, body.endpoint, body.metadata or {}, expiry, whose.tenant)
    return Json(batch_json(record))


@router.get("", summary="List batches")
@needs(TENANT)
async def list_batches(
    service: ServiceState, whose: CallerWhose, asked: Annotated[ListParameters, Query()]
) -> Response:
    """The newest batches, a page at a time."""
    records = await service.batches.page(asked.after, asked.limit + 1, whose)
    return page_answer(records, asked.limit, batch_json)


@router.get("/{batch_id}", summary="Look at a batch")
@needs(TENANT)
async def retrieve(service: ServiceState, whose: CallerWhose, batch_id: str) -> Response:
    """How far a batch is, and where its results are."""
    return Json(batch_json(await _found(service, batch_id, whose)))


@router.post("/{batch_id}/cancel", summary="Cancel a batch")
@needs(TENANT)
async def cancel(service: ServiceState, whose: CallerWhose, batch_id: str) -> Response:
    """Send no more of its requests; what was answered is kept."""
    record = await _found(service, batch_id, whose)
    if record.status not in OPEN:
        raise ObjectInUse(f"Batch '{record.id}' has ended: it is {record.status}")
    return Json(batch_json(await service.batches.cancel(record)))


async def _found(service: Service, batch_id: str, whose: Whose) -> BatchRecord:
    known = len(batch_id) <= limits.MAX_RESPONSE_ID_LENGTH and batch_id.isascii()
    record = await service.batches.get(batch_id) if known else None
    if record is None or not whose.owns(record.tenant):
        raise ObjectNotFound(f"No batch found with id '{shown(batch_id)[1:-1]}'", "batch_id")
    return record


def batch_json(record: BatchRecord) -> dict[str, Any]:
    """A batch as OpenAI shows it."""
    details = record.details
    errors = details.get("errors")
    return {
        "id": record.id,
        "object": "batch",
        "endpoint": details["endpoint"],
        "errors": None if errors is None else {"object": "list", "data": errors},
        "input_file_id": record.input_file,
        "completion_window": "24h",
        "status": record.status,
        "output_file_id": details.get("output_file_id"),
        "error_file_id": details.get("error_file_id"),
        "created_at": int(record.created),
        "expires_at": int(details["expires_at"]),
        **{name: int(details[name]) if name in details else None for name in _TIMES},
        "request_counts": details["counts"],
        "metadata": details["metadata"],
    }
