"""``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, with vLLM's fields and success texts."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from pydantic import AfterValidator, Field

from manylora.adapters.errors import AdapterExists, AdapterTooLarge, SourceForbidden
from manylora.adapters.mix import normal_name
from manylora.adapters.sources.fetching import resolve_directory
from manylora.server.api.access.scopes import ADMIN, needs
from manylora.server.api.admin.json_views import short_digest
from manylora.server.api.http.body import RequestBody, parse_body
from manylora.server.api.http.error_context import blame
from manylora.server.api.http.limits import MAX_PATH_LENGTH, MAX_USER_LENGTH
from manylora.server.api.http.model_header import model_header
from manylora.server.api.http.openapi import DIRECTORY, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of

router = APIRouter(prefix="/v1", tags=["adapters"])


class LoadBody(RequestBody):
    """What to load, and under which name."""

    lora_name: Annotated[str, AfterValidator(normal_name)] = Field(min_length=1, max_length=MAX_USER_LENGTH)
    lora_path: str = Field(
        min_length=1,
        max_length=MAX_PATH_LENGTH,
        pattern=r"^[^\x00]*$",
        description="A PEFT directory inside one of the server's --adapter-root directories.",
    )
    load_inplace: bool | None = Field(None, description="Replace the adapter if the name is in use.")


class UnloadBody(RequestBody):
    """What to unload."""

    lora_name: Annotated[str, AfterValidator(normal_name)] = Field(min_length=1, max_length=MAX_USER_LENGTH)


_LOAD = example("From a directory", {"lora_name": "my-adapter", "lora_path": DIRECTORY})
_UNLOAD = example("By name", {"lora_name": "my-adapter"})


@router.post(
    "/load_lora_adapter",
    summary="Load an adapter from a directory",
    response_class=PlainTextResponse,
    openapi_extra=documented(LoadBody, {"directory": _LOAD}),
)
@needs(ADMIN)
async def load_lora_adapter(
    service: ServiceState, body: Annotated[LoadBody, Depends(parse_body(LoadBody, rules_of(Place.LOAD).sift))]
) -> PlainTextResponse:
    """Read, check and register an adapter. It is usable once this has answered 200.

    With ``load_inplace`` new requests get the new revision; those running keep theirs. Loading what the name
    has already succeeds.
    """
    admin = service.adapters.admin
    with blame("lora_name"):
        admin.check_free(body.lora_name, replace=True)
    roots = service.config.adapter_root
    if not roots:
        raise SourceForbidden(
            "Loading adapters over HTTP is off: start the server with --adapter-root DIR to allow it"
        )
    path = await asyncio.to_thread(resolve_directory, body.lora_path, roots)
    with blame("lora_name", AdapterExists), blame("lora_path", AdapterTooLarge):
        loaded = await admin.load(body.lora_name, path, replace=bool(body.load_inplace))
    return PlainTextResponse(
        f"Success: LoRA adapter '{body.lora_name}' added successfully.",
        headers=model_header(f"{loaded.name}@{short_digest(loaded.digest)}"),
    )


@router.post(
    "/unload_lora_adapter",
    summary="Unload an adapter",
    response_class=PlainTextResponse,
    openapi_extra=documented(UnloadBody, {"name": _UNLOAD}),
)
@needs(ADMIN)
async def unload_lora_adapter(
    service: ServiceState,
    body: Annotated[UnloadBody, Depends(parse_body(UnloadBody, rules_of(Place.UNLOAD).sift))],
) -> PlainTextResponse:
    """Refuse new requests for the adapter at once, let running ones finish, then free its memory."""
    with blame("lora_name"):
        deleted = await service.adapters.deletions.delete(body.lora_name)
    return PlainTextResponse(
        f"Success: LoRA adapter '{body.lora_name}' removed successfully.",
        headers={"x-manylora-bytes-freed": str(deleted.bytes_freed)},
    )
