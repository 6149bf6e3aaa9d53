"""``/v1/files``: upload, list, look at, download and delete files."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import Field

from manylora.adapters.disk import full_disk_told
from manylora.adapters.format.faults import shown
from manylora.adapters.registry.files import FileRecord
from manylora.adapters.registry.whose import Whose
from manylora.server.api.access.scopes import TENANT, CallerWhose, needs
from manylora.server.api.files.pages import Parameters, page_answer
from manylora.server.api.http import limits
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.middleware import takes_uploads
from manylora.server.api.http.multipart import Form, is_multipart, receive_form
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import ObjectInUse, ObjectNotFound, RequestError
from manylora.server.service import Service

router = APIRouter(prefix="/v1/files", tags=["files"])

PURPOSES: Final = ("batch", "fine-tune", "user_data", "evals")
_FIELDS: Final = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_LAST_STEP = re.compile(r"[^/\\]*\Z")

_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(PURPOSES)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer"},
    },
}


class ListParameters(Parameters):
    """Query parameters that say which files to list."""

    purpose: str | None = Field(None, max_length=limits.MAX_TAG_LENGTH)
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = Field(None, max_length=limits.MAX_RESPONSE_ID_LENGTH)


@router.post(
    "",
    summary="Upload a file",
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
)
@needs(TENANT)
@takes_uploads
async def upload(request: Request, service: ServiceState, whose: CallerWhose) -> Response:
    """Keep a file: the form's ``file``, for its ``purpose``."""
    if not is_multipart(request.headers.get("content-type", "")):
        raise RequestError("The body must be a form (multipart/form-data) with 'file' and 'purpose'", "file")
    with ExitStack() as kept, full_disk_told("there is no room for the file"):
        directory = await asyncio.to_thread(kept.enter_context, service.store.temporary())
        form = await receive_form(request.stream(), request.headers["content-type"], directory)
        purpose, expires_after = _asked(form)
        name, path = _only_file(form)
        record = await asyncio.to_thread(
            service.files.add, path, name, purpose, expires_after, tenant=whose.tenant
        )
    return Json(file_json(record))


@router.get("", summary="List files")
@needs(TENANT)
async def list_files(
    service: ServiceState, whose: CallerWhose, asked: Annotated[ListParameters, Query()]
) -> Response:
    """Files by time, a page at a time."""
    records = await asyncio.to_thread(
        lambda: service.files.page(
            purpose=asked.purpose,
            after=asked.after,
            limit=asked.limit + 1,
            ascending=asked.order == "asc",
            whose=whose,
        )
    )
    return page_answer(records, asked.limit, file_json)


@router.get("/{file_id}", summary="Look at a file")
@needs(TENANT)
async def retrieve(service: ServiceState, whose: CallerWhose, file_id: str) -> Response:
    """What is known of one file."""
    return Json(file_json(await found(service, file_id, whose)))


@router.get("/{file_id}/content", summary="Download a file")
@needs(TENANT)
async def content(service: ServiceState, whose: CallerWhose, file_id: str) -> Response:
    """The bytes of one file."""
    record = await found(service, file_id, whose)
    path = service.files.path(record.id)
    if not await asyncio.to_thread(path.is_file):
        raise ObjectNotFound(f"The bytes of file '{record.id}' are on another server")
    return FileResponse(path, media_type="application/octet-stream", filename=record.filename)


@router.delete("/{file_id}", summary="Delete a file")
@needs(TENANT)
async def delete(service: ServiceState, whose: CallerWhose, file_id: str) -> Response:
    """Forget a file and free its bytes; not while a batch reads it."""
    record = await found(service, file_id, whose)
    if await service.batches.needs(record.id):
        raise ObjectInUse(f"File '{record.id}' is read by a batch that has not ended")
    if await asyncio.to_thread(service.tuning.jobs.reads, record.id):
        raise ObjectInUse(f"File '{record.id}' is read by a fine-tuning job that has not ended")
    await asyncio.to_thread(service.files.remove, record.id)
    return Json({"id": record.id, "object": "file", "deleted": True})


async def found(service: Service, file_id: str, whose: Whose, param: str | None = None) -> FileRecord:
    """The file of that id, if it is theirs.

    Raises:
        ObjectNotFound: there is none, naming ``param`` if one named it.
    """
    known = len(file_id) <= limits.MAX_RESPONSE_ID_LENGTH and file_id.isascii()
    record = await asyncio.to_thread(service.files.get, file_id) if known else None
    if record is None or not whose.owns(record.tenant):
        raise ObjectNotFound(f"No such File object: {shown(file_id)[1:-1]}", param or "id")
    return record


def file_json(record: FileRecord) -> dict[str, Any]:
    """A file as OpenAI shows it."""
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.nbytes,
        "created_at": int(record.created),
        "expires_at": None if record.expires is None else int(record.expires),
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
        "status_details": None,
    }


def _asked(form: Form) -> tuple[str, int | None]:
    """The purpose, and after how many seconds the file is to go."""
    fields = dict(form.fields)
    unknown = next((name for name in fields if name not in _FIELDS), None)
    if unknown is not None:
        raise RequestError(
            f"Unrecognized field of the form: {shown(unknown)}", unknown[:100], "unknown_parameter"
        )
    purpose = fields.get("purpose")
    if purpose not in PURPOSES:
        raise RequestError(f"'purpose' must be one of {', '.join(PURPOSES)}", "purpose")
    seconds = fields.get("expires_after[seconds]")
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise RequestError("'expires_after[anchor]' must be created_at", "expires_after[anchor]")
    if seconds is None:
        return purpose, None
    if not seconds.isdecimal() or not limits.MIN_EXPIRY <= int(seconds[:12]) <= limits.MAX_EXPIRY:
        raise RequestError(
            f"'expires_after[seconds]' must be from {limits.MIN_EXPIRY} to {limits.MAX_EXPIRY}",
            "expires_after[seconds]",
        )
    return purpose, int(seconds)


def _only_file(form: Form) -> tuple[str, Path]:
    if len(form.files) != 1:
        raise RequestError("The form must have one file, 'file'", "file")
    name, path = form.files[0]
    match = _LAST_STEP.search(name)
    assert match is not None, "the pattern matches the end of any text"
    own = "".join(c for c in match.group() if c.isprintable())[:255]
    return own or "file", path
