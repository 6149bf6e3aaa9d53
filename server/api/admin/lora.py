"""``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, with vLLM's fields and success texts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from pydantic import AfterValidator, Field

from manylora.adapters.mix import normal_name
from manylora.server.api.access.scopes import ADMIN, needs
from manylora.server.api.admin.json_views import short_digest
from manylora.server.api.admin.loading import RegistryScope, load, unload
from manylora.server.api.http.body import RequestBody, parse_body
from manylora.server.api.http.limits import MAX_PATH_LENGTH, MAX_USER_LENGTH
from manylora.server.api.http.model_header import model_header
from manylora.server.api.http.openapi import DIRECTORY, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of

router = APIRouter(prefix="/v1", tags=["adapters"])

SCOPE = "For all servers of the registry, or this one alone (pod); by default as --registry-scope says."


class LoadBody(RequestBody):
    """What to load, and under which name."""

    lora_name: Annotated[str, AfterValidator(normal_name)] = Field(min_length=1, max_length=MAX_USER_LENGTH)
    lora_path: str = Field(
        min_length=1,
        max_length=MAX_PATH_LENGTH,
        pattern=r"^[^\x00]*$",
        description="A directory in one of --adapter-root, hf://, s3:// or another URL, or ORG/REPOSITORY.",
    )
    load_inplace: bool | None = Field(None, description="Replace the adapter if the name is in use.")
    registry_scope: RegistryScope | None = Field(None, description=SCOPE)


class UnloadBody(RequestBody):
    """What to unload."""

    lora_name: Annotated[str, AfterValidator(normal_name)] = Field(min_length=1, max_length=MAX_USER_LENGTH)
    registry_scope: RegistryScope | None = Field(None, description=SCOPE)


_LOAD = example("From a directory", {"lora_name": "my-adapter", "lora_path": DIRECTORY})
_UNLOAD = example("By name", {"lora_name": "my-adapter"})


@router.post(
    "/load_lora_adapter",
    summary="Load an adapter from a directory or a source",
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
    loaded = await load(
        service,
        body.lora_name,
        body.lora_path,
        "lora_path",
        scope=body.registry_scope,
        replace=bool(body.load_inplace),
    )
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
    deleted = await unload(service, body.lora_name, body.registry_scope)
    return PlainTextResponse(
        f"Success: LoRA adapter '{body.lora_name}' removed successfully.",
        headers={"x-manylora-bytes-freed": str(deleted.bytes_freed)},
    )
