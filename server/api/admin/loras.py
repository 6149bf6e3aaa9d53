"""``/v1/loras``: loading and unloading with the fields of Dynamo's workers."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import AfterValidator, Field

from manylora.adapters.mix import normal_name
from manylora.server.api.access.scopes import ADMIN, needs
from manylora.server.api.access.views import CallerNames
from manylora.server.api.admin.loading import load, unload
from manylora.server.api.http.body import RequestBody, parse_body
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import MAX_PATH_LENGTH, MAX_USER_LENGTH
from manylora.server.api.http.names_in_paths import NAME, Name
from manylora.server.api.http.openapi import DIRECTORY, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.names.view import called

router = APIRouter(prefix="/v1/loras", tags=["adapters"])


class LoraSource(RequestBody):
    """Where an adapter is."""

    uri: str = Field(
        min_length=1,
        max_length=MAX_PATH_LENGTH,
        pattern=r"^[^\x00]*$",
        description="file:///DIRECTORY, hf://ORG/REPOSITORY, s3://BUCKET/PREFIX, or a directory.",
    )


class LoraBody(RequestBody):
    """What to load, and under which name."""

    lora_name: Annotated[str, AfterValidator(normal_name)] = Field(min_length=1, max_length=MAX_USER_LENGTH)
    source: LoraSource


_LOAD = example("From a directory", {"lora_name": "my-adapter", "source": {"uri": f"file://{DIRECTORY}"}})


@router.post("", summary="Load an adapter (Dynamo)", openapi_extra=documented(LoraBody, {"directory": _LOAD}))
@needs(ADMIN)
async def load_lora(
    service: ServiceState, body: Annotated[LoraBody, Depends(parse_body(LoraBody))]
) -> Response:
    """Read, check and register an adapter. Loading what the name has already succeeds."""
    await load(service, body.lora_name, body.source.uri, "source.uri", scope=None, replace=False)
    return _told("loaded", body.lora_name)


@router.get("", summary="The adapters that serve (Dynamo)")
@needs(ADMIN)
async def list_loras(service: ServiceState, names: CallerNames) -> Response:
    """Names, with the number that stands for each."""
    serving = service.adapters.views.serving()
    found = [called(each.name, names) for each in serving if names is None or names.visible(each.name)]
    loras = {name: number_of(name) for name in sorted(found)}
    return Json({"status": "success", "loras": loras, "count": len(loras)})


@router.delete(f"/{NAME}", summary="Unload an adapter (Dynamo)")
@needs(ADMIN)
async def unload_lora(service: ServiceState, name: Name) -> Response:
    """Refuse new requests for the adapter at once, let running ones finish, then free its memory."""
    await unload(service, name, None)
    return _told("unloaded", name)


def number_of(name: str) -> int:
    """A positive number of 31 bits, the same for a name everywhere and always."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) & 0x7FFFFFFF or 1


def _told(what: str, name: str) -> Response:
    message = f"LoRA adapter '{name}' {what} successfully"
    return Json({"status": "success", "message": message, "lora_name": name, "lora_id": number_of(name)})
