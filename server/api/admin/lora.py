"""``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, with vLLM's fields and success texts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from pydantic import Field

from manylora.adapters.errors import AdapterExists, AdapterTooLarge, SourceForbidden
from manylora.adapters.mix import check_name
from manylora.adapters.sources.fetching import resolve_directory
from manylora.server.api.admin.json_views import short_digest
from manylora.server.api.http.body import RequestBody, parse_body
from manylora.server.api.http.error_context import blame
from manylora.server.api.http.limits import MAX_PATH_LENGTH, MAX_USER_LENGTH
from manylora.server.api.http.openapi import DIRECTORY, documented, example
from manylora.server.api.http.scopes import ADMIN, needs
from manylora.server.api.http.state import ServiceState

router = APIRouter(prefix="/v1", tags=["adapters"])


class LoadBody(RequestBody):
    """What to load, and under which name."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "base_model_name": (),
        "is_3d_lora_weight": (False,),
        "lora_int_id": (),
    }

    lora_name: str = Field(min_length=1, max_length=MAX_USER_LENGTH)
    lora_path: str = Field(
        min_length=1,
        max_length=MAX_PATH_LENGTH,
        pattern=r"^[^\x00]*$",
        description="A PEFT directory inside one of the server's --adapter-root directories.",
    )
    load_inplace: bool | None = Field(None, description="Replace the adapter if the name is in use.")


class UnloadBody(RequestBody):
    """What to unload."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {"lora_int_id": ()}

    lora_name: str = Field(min_length=1, max_length=MAX_USER_LENGTH)


_LOAD = example("From a directory", {"lora_name": "my-adapter", "lora_path": DIRECTORY})
_UNLOAD = example("By name", {"lora_name": "my-adapter"})


@router.post(
    "/load_lora_adapter",
    summary="Load an adapter from a directory",
    openapi_extra=documented(LoadBody, {"directory": _LOAD}),
)
@needs(ADMIN)
async def load_lora_adapter(
    service: ServiceState, body: Annotated[LoadBody, Depends(parse_body(LoadBody))]
) -> PlainTextResponse:
    """Read, check and register an adapter. It is usable once this has answered 200.

    With ``load_inplace`` new requests get the new revision; those running keep theirs.
    """
    with blame("lora_name"):
        check_name(body.lora_name)
    if body.lora_name == service.model_name:
        raise AdapterExists(f"'{body.lora_name}' is the name of the base model")
    roots = service.config.adapter_root
    if not roots:
        raise SourceForbidden(
            "Loading adapters over HTTP is off: start the server with --adapter-root DIR to allow it"
        )
    path = await asyncio.to_thread(resolve_directory, body.lora_path, roots)
    with blame("lora_path", AdapterTooLarge):
        loaded = await service.adapters.admin.load(body.lora_name, path, replace=bool(body.load_inplace))
    return PlainTextResponse(
        f"Success: LoRA adapter '{body.lora_name}' added successfully.",
        headers={"x-manylora-model": f"{loaded.name}@{short_digest(loaded.digest)}"},
    )


@router.post(
    "/unload_lora_adapter",
    summary="Unload an adapter",
    openapi_extra=documented(UnloadBody, {"name": _UNLOAD}),
)
@needs(ADMIN)
async def unload_lora_adapter(
    service: ServiceState, body: Annotated[UnloadBody, Depends(parse_body(UnloadBody))]
) -> PlainTextResponse:
    """Refuse new requests for the adapter at once, let running ones finish, then free its memory."""
    with blame("lora_name"):
        deleted = await service.adapters.deletions.delete(body.lora_name)
    return PlainTextResponse(
        f"Success: LoRA adapter '{body.lora_name}' removed successfully.",
        headers={"x-manylora-bytes-freed": str(deleted.bytes_freed)},
    )
