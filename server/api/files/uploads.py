"""``/v1/uploads``: files that are sent in parts."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AfterValidator, Field

from manylora.adapters.disk import full_disk_told
from manylora.adapters.format.faults import shown
from manylora.adapters.registry.files import FileRecord
from manylora.adapters.registry.uploads import PartRecord, UploadRecord
from manylora.adapters.registry.whose import Whose
from manylora.server.api.access.scopes import TENANT, CallerWhose, needs
from manylora.server.api.files.expires_after import ExpiresAfter
from manylora.server.api.files.file_form import (
    check_fields,
    checked_purpose,
    default_expiry,
    only_file,
    own_name,
)
from manylora.server.api.files.files import file_json, received, room_of
from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody, bounded, parse_body
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.middleware import takes_file
from manylora.server.api.http.openapi import documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.assembly import MAX_UPLOADED_PARTS
from manylora.server.errors import ObjectNotFound, RequestError
from manylora.server.files.uploads import check_open, status_of
from manylora.server.service import Service

router = APIRouter(prefix="/v1/uploads", tags=["files"])

_PART_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that can't be printed")
    return text


class UploadBody(RequestBody):
    """A file that is to come."""

    bytes: int = Field(ge=1, le=limits.MAX_UPLOAD_BYTES)
    filename: str = Field(min_length=1, max_length=limits.MAX_FILENAME)
    mime_type: Annotated[str, AfterValidator(_printable)] = Field(
        min_length=1, max_length=limits.MAX_MIME_TYPE, description="A note: downloads are plain bytes."
    )
    purpose: str = Field(max_length=limits.MAX_TAG_LENGTH)
    expires_after: ExpiresAfter | None = Field(
        None, description="When the file goes, counted from its completion."
    )


class CompleteBody(RequestBody):
    """The parts that are the file."""

    part_ids: Annotated[
        list[Annotated[str, Field(max_length=limits.MAX_RESPONSE_ID_LENGTH)]],
        bounded(MAX_UPLOADED_PARTS, "part_ids"),
    ] = Field(min_length=1)
    md5: str | None = Field(None, pattern=r"^[0-9a-fA-F]{32}$", description="Of the whole, hexadecimal.")


_BEGIN = {
    "a file": example(
        "A file", {"bytes": 9, "filename": "in.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    )
}
_END = {"parts": example("Two parts", {"part_ids": ["part_1", "part_2"]})}


@router.post("", summary="Begin an upload", openapi_extra=documented(UploadBody, _BEGIN))
@needs(TENANT)
async def create(
    request: Request,
    service: ServiceState,
    whose: CallerWhose,
    body: Annotated[UploadBody, Depends(parse_body(UploadBody))],
) -> Response:
    """Announce a file that comes in parts, within an hour."""
    purpose = checked_purpose(body.purpose)
    most = service.config.max_upload_bytes
    if body.bytes > most:
        raise RequestError(f"'bytes' may be {most} at most (--max-upload-bytes)", "bytes")
    expiry = default_expiry(purpose) if body.expires_after is None else body.expires_after.seconds
    record = await service.uploads.create(
        own_name(body.filename),
        purpose,
        body.mime_type,
        body.bytes,
        expiry,
        tenant=whose.tenant,
        room=room_of(request.scope),
    )
    return Json(upload_json(record))


@router.post("/{upload_id}/parts", summary="Add a part", openapi_extra=_PART_FORM)
@needs(TENANT)
@takes_file(limits.MAX_PART_BYTES)
async def add_part(request: Request, service: ServiceState, whose: CallerWhose, upload_id: str) -> Response:
    """Keep the form's ``data`` as a part."""
    upload = await _found(service, upload_id, whose)
    check_open(upload)
    with ExitStack() as kept, full_disk_told("there is no room for the part"):
        form = await received(request, service, kept, "data")
        check_fields(form, ())
        _, path = only_file(form, "data", limits.MAX_PART_BYTES)
        part = await service.uploads.add_part(upload, path, room_of(request.scope))
    return Json(part_json(part))


@router.post(
    "/{upload_id}/complete", summary="Complete an upload", openapi_extra=documented(CompleteBody, _END)
)
@needs(TENANT)
async def complete(
    request: Request,
    service: ServiceState,
    whose: CallerWhose,
    upload_id: str,
    body: Annotated[CompleteBody, Depends(parse_body(CompleteBody))],
) -> Response:
    """Make the parts, in that order, a file."""
    upload = await _found(service, upload_id, whose)
    with full_disk_told("there is no room for the file"):
        done, file = await service.uploads.complete(upload, body.part_ids, body.md5, room_of(request.scope))
    return Json(upload_json(done, file))


@router.post("/{upload_id}/cancel", summary="Cancel an upload")
@needs(TENANT)
async def cancel(service: ServiceState, whose: CallerWhose, upload_id: str) -> Response:
    """Take no more parts, and free those that are there."""
    return Json(upload_json(await service.uploads.cancel(await _found(service, upload_id, whose))))


async def _found(service: Service, upload_id: str, whose: Whose) -> UploadRecord:
    known = len(upload_id) <= limits.MAX_RESPONSE_ID_LENGTH and upload_id.isascii()
    record = await service.uploads.get(upload_id) if known else None
    if record is None or not whose.owns(record.tenant):
        raise ObjectNotFound(f"No upload found with id '{shown(upload_id)[1:-1]}'", "upload_id")
    return record


def upload_json(record: UploadRecord, file: FileRecord | None = None) -> dict[str, Any]:
    """An upload as OpenAI shows it."""
    return {
        "id": record.id,
        "object": "upload",
        "bytes": record.nbytes,
        "created_at": int(record.created),
        "expires_at": int(record.expires),
        "filename": record.filename,
        "purpose": record.purpose,
        "status": status_of(record),
        "file": None if file is None else file_json(file),
    }


def part_json(part: PartRecord) -> dict[str, Any]:
    """A part as OpenAI shows it."""
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": int(part.created),
        "upload_id": part.upload,
    }
