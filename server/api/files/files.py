"""``/v1/files``: upload, list, look at, download and delete files."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from contextlib import ExitStack
from itertools import chain
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import Field
from starlette.types import Scope

from manylora.adapters.disk import full_disk_told
from manylora.adapters.errors import OverQuota
from manylora.adapters.format.faults import shown
from manylora.adapters.registry.files import FileRecord
from manylora.adapters.registry.whose import Whose
from manylora.server.api.access.scopes import TENANT, CallerWhose, caller_tenant, needs
from manylora.server.api.files.file_form import FILE_BODY, asked_of, only_file
from manylora.server.api.files.pages import Parameters, page_answer
from manylora.server.api.http import limits
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.middleware import takes_file
from manylora.server.api.http.multipart import Form, is_multipart, receive_form
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import ObjectInUse, ObjectNotFound, RequestError
from manylora.server.service import Service

router = APIRouter(prefix="/v1/files", tags=["files"])

_BYTES: Final = "application/octet-stream"


class ListParameters(Parameters):
    """Query parameters that say which files to list."""

    purpose: str | None = Field(None, max_length=limits.MAX_TAG_LENGTH)
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = Field(None, max_length=limits.MAX_RESPONSE_ID_LENGTH)


@router.post(
    "",
    summary="Upload a file",
    openapi_extra=FILE_BODY,
)
@needs(TENANT)
@takes_file(limits.MAX_FILE_BYTES)
async def upload(request: Request, service: ServiceState, whose: CallerWhose) -> Response:
    """Keep a file: the form's ``file``, for its ``purpose``."""
    room = room_of(request.scope)
    await check_announced(service, request, whose, room)
    with ExitStack() as kept, full_disk_told("there is no room for the file"):
        form = await received(request, service, kept, "file")
        purpose, expires_after = asked_of(form)
        name, path = only_file(form, "file", limits.MAX_FILE_BYTES)
        tenant = whose.tenant
        record = await asyncio.to_thread(
            service.files.add, path, name, purpose, expires_after, tenant=tenant, room=room
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
    path = await asyncio.to_thread(service.files.local_path, record)
    digest = {"repr-digest": f"sha-256=:{b64encode(bytes.fromhex(record.digest)).decode()}:"}
    if path is not None:
        return FileResponse(path, media_type=_BYTES, filename=record.filename, headers=digest)
    pieces = service.files.pieces(record)
    first = await asyncio.to_thread(next, pieces, b"")  # what is wrong with them is told before the 200
    headers = {**digest, "content-length": str(record.nbytes), "content-disposition": _attached(record)}
    return StreamingResponse(chain([first], pieces), media_type=_BYTES, headers=headers)


@router.delete("/{file_id}", summary="Delete a file")
@needs(TENANT)
async def delete(service: ServiceState, whose: CallerWhose, file_id: str) -> Response:
    """Forget a file and free its bytes; not while a batch or a training job needs it."""
    record = await found(service, file_id, whose)
    reader = await service.file_readers(record.id)
    if reader is not None:
        raise ObjectInUse(f"File '{record.id}' is needed by {reader}")
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


async def received(request: Request, service: Service, kept: ExitStack, field: str) -> Form:
    """The form of a request, its files in a directory that ``kept`` removes.

    Raises:
        RequestError: the body is no form, with a file in the part ``field``.
    """
    if not is_multipart(request.headers.get("content-type", "")):
        raise RequestError(f"The body must be a form (multipart/form-data) with '{field}'", field)
    directory = await asyncio.to_thread(kept.enter_context, service.store.temporary())
    return await receive_form(request.stream(), request.headers["content-type"], directory)


def room_of(scope: Scope) -> int | None:
    """How many bytes of files the caller may keep in all; None: as many as there is room for."""
    tenant = caller_tenant(scope)
    return None if tenant is None else tenant.settings.limits.file_bytes


async def check_announced(service: Service, request: Request, whose: Whose, room: int | None) -> None:
    """Refuse a body that is too much for its tenant by the length it declares, before it is read.

    Raises:
        OverQuota: there is no room for it.
    """
    declared = int(request.headers.get("content-length", "0")) - limits.MAX_FORM_BYTES
    if room is not None:
        used = await asyncio.to_thread(service.files.bytes_of, whose.tenant)
        if used >= room or used + declared > room:
            raise OverQuota(f"your files and uploads take {used:,} bytes of {room:,}: delete some")


def _attached(record: FileRecord) -> str:
    return f"attachment; filename*=utf-8''{quote(record.filename, safe='')}"
