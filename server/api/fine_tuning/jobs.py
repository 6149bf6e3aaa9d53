"""``/v1/fine_tuning/jobs``: make jobs, look at them, change them."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from manylora.adapters.format.faults import shown
from manylora.adapters.registry.tuning.records import JobRecord, KeyReused, RequestKey
from manylora.adapters.registry.tuning.states import NotAllowed
from manylora.adapters.registry.whose import Whose
from manylora.server.api.access.scopes import MANAGE, TENANT, CallerWhose, needs
from manylora.server.api.access.views import CallerView
from manylora.server.api.files.pages import Parameters, page_answer
from manylora.server.api.fine_tuning.body import JobBody
from manylora.server.api.fine_tuning.creating import bring_files, new_job
from manylora.server.api.fine_tuning.dry_run import estimate_of
from manylora.server.api.fine_tuning.request_key import KeyHeader, request_key, reused
from manylora.server.api.fine_tuning.views import checkpoint_json, job_json
from manylora.server.api.http import limits
from manylora.server.api.http.body import parse_body
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.openapi import BASE, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import ObjectInUse, ObjectNotFound, QueueFull, RequestError
from manylora.server.jobs.folder import JOB_ID
from manylora.server.service import Service
from manylora.server.tenants.view import TenantView

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

MAX_OPEN = 100  # jobs of one tenant that have not ended
_RETRY_SECONDS = 60.0
_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_EXAMPLES = {
    "Answers": example(
        "From a file of conversations",
        {"model": BASE, "training_file": "file-abc", "suffix": "support", "lora": {"r": 8}},
    ),
    "Classes": example(
        "From a file of texts and labels",
        {"model": BASE, "training_file": "file-abc", "validation_file": "file-def", "task": "classification"},
    ),
}


class CreateParameters(Parameters):
    """Query parameter that asks what a job would take."""

    dry_run: bool = Field(False, description="Only check the files, and say what training would take.")


class PageParameters(Parameters):
    """Query parameters of lists."""

    limit: int = Field(20, ge=1, le=100)
    after: str | None = Field(None, max_length=limits.MAX_RESPONSE_ID_LENGTH)


class CheckpointParameters(PageParameters):
    """The same, with fewer on a page."""

    limit: int = Field(10, ge=1, le=100)


def _listed(request: Request) -> tuple[PageParameters, dict[str, str]]:
    """The page that is asked for, and the metadata that jobs on it have: ``metadata[key]=value``."""
    values: dict[str, Any] = {}
    wanted: dict[str, str] = {}
    for key, value in request.query_params.multi_items():
        match = _METADATA.fullmatch(key)
        if match is None:
            values[key] = value
        else:
            wanted[match.group(1)] = value
    if values.get("metadata") in ("", "null"):
        del values["metadata"]
    if len(wanted) > limits.MAX_METADATA:
        raise RequestError(f"'metadata' may hold at most {limits.MAX_METADATA} items", "metadata")
    return PageParameters.model_validate(values), wanted


@router.post("", summary="Begin a job", openapi_extra=documented(JobBody, _EXAMPLES))
@needs(MANAGE)
async def create(
    service: ServiceState,
    whose: CallerWhose,
    view: CallerView,
    asked: Annotated[CreateParameters, Query()],
    body: Annotated[JobBody, Depends(parse_body(JobBody))],
    *,
    idempotency_key: KeyHeader = None,
) -> Response:
    """Train a model on the rows of a file. It answers here as soon as the job has succeeded."""
    if service.tuning.mode == "off":
        message = "This server trains no models: start it with --training local, or external"
        raise RequestError(message, None, "training_off")
    key = request_key(idempotency_key, body, whose)
    if asked.dry_run:
        return Json(await estimate_of(service, *await new_job(service, body, whose, view)))
    try:
        made = None if key is None else await asyncio.to_thread(service.tuning.jobs.of_key, key)
        return Json(job_json(made or await _begun(service, body, whose, view, key)))
    except KeyReused:
        raise reused() from None


async def _begun(
    service: Service, body: JobBody, whose: Whose, view: TenantView | None, key: RequestKey | None
) -> JobRecord:
    """A new job; or, if the same request has come at the same time, its job."""
    record, files = await new_job(service, body, whose, view)
    if await asyncio.to_thread(service.tuning.jobs.count_open, record.tenant) >= MAX_OPEN:
        raise QueueFull(f"{MAX_OPEN} of your jobs have not ended yet", _RETRY_SECONDS)
    folder = service.tuning.folder(record.id)
    try:
        await bring_files(service, files, folder)
        made = await service.tuning.add(record, key)
    except BaseException:
        await asyncio.to_thread(folder.remove)
        raise
    if made.id != record.id:
        await asyncio.to_thread(folder.remove)
    return made


@router.get("", summary="List jobs")
@needs(TENANT)
async def list_jobs(
    service: ServiceState,
    whose: CallerWhose,
    asked: Annotated[tuple[PageParameters, dict[str, str]], Depends(_listed)],
) -> Response:
    """The newest jobs, a page at a time; with ``metadata[key]=value`` those that have it."""
    page, metadata = asked
    records = await asyncio.to_thread(
        lambda: service.tuning.jobs.page(
            after=page.after, limit=page.limit + 1, whose=whose, metadata=metadata
        )
    )
    return page_answer(records, page.limit, job_json)


@router.get("/{job_id}", summary="Look at a job")
@needs(TENANT)
async def retrieve(service: ServiceState, whose: CallerWhose, job_id: str) -> Response:
    """How far a job is, and what it came to."""
    return Json(job_json(await found_job(service, job_id, whose)))


@router.post("/{job_id}/cancel", summary="Cancel a job")
@needs(MANAGE)
async def cancel(service: ServiceState, whose: CallerWhose, job_id: str) -> Response:
    """End a job; nothing of it is kept."""
    return await _changed(service, job_id, whose, "cancel")


@router.post("/{job_id}/pause", summary="Pause a job")
@needs(MANAGE)
async def pause(service: ServiceState, whose: CallerWhose, job_id: str) -> Response:
    """Have a job wait after its current step."""
    return await _changed(service, job_id, whose, "pause")


@router.post("/{job_id}/resume", summary="Resume a job")
@needs(MANAGE)
async def resume(service: ServiceState, whose: CallerWhose, job_id: str) -> Response:
    """Have a paused job go on from where it was."""
    return await _changed(service, job_id, whose, "resume")


@router.get("/{job_id}/checkpoints", summary="Checkpoints of a job")
@needs(TENANT)
async def checkpoints(
    service: ServiceState, whose: CallerWhose, job_id: str, asked: Annotated[CheckpointParameters, Query()]
) -> Response:
    """The steps of a job whose weights can be asked for, the latest first."""
    job = await found_job(service, job_id, whose)
    records = await asyncio.to_thread(
        lambda: service.tuning.events.checkpoints(job.id, after=asked.after, limit=asked.limit + 1)
    )
    return page_answer(records, asked.limit, checkpoint_json)


async def found_job(service: Service, job_id: str, whose: Whose) -> JobRecord:
    """The job of that id, if it is theirs.

    Raises:
        ObjectNotFound: there is none.
    """
    known = JOB_ID.fullmatch(job_id) is not None
    job = await asyncio.to_thread(service.tuning.jobs.get, job_id) if known else None
    if job is None or not whose.owns(job.tenant):
        raise ObjectNotFound(f"Could not find fine tune: {shown(job_id)[1:-1]}", "fine_tune_id")
    return job


async def _changed(service: Service, job_id: str, whose: Whose, how: str) -> Response:
    job = await found_job(service, job_id, whose)
    try:
        changed = await asyncio.to_thread(getattr(service.tuning.jobs, how), job.id)
    except NotAllowed as error:
        raise ObjectInUse(f"Job '{job.id}' can't be changed so: it is {error.state}") from None
    if service.tuning.worker is not None:
        service.tuning.worker.wake()
    return Json(job_json(changed))
