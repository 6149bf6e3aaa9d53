"""``DELETE /v1/models/{model}``: a fine-tuned model goes, with the checkpoints of its job."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter, Response

from manylora.adapters.errors import AdapterError, AdapterInUse, AdapterNotFound
from manylora.adapters.mix import check_name
from manylora.adapters.registry.fine_tuned import CHECKPOINT, parse_fine_tuned
from manylora.server.api.access.scopes import MANAGE, needs
from manylora.server.api.access.views import CallerView
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import DEFAULT_DEADLINE
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import ModelNotFound, RequestError

router = APIRouter(prefix="/v1/models", tags=["models", "adapters"])


@router.delete("/{model_id:path}", summary="Delete a fine-tuned model")
@needs(MANAGE)
async def delete_model(service: ServiceState, view: CallerView, model_id: str) -> Response:
    """Refuse new requests at once; those that run are completed. Of a tenant's key, one of its own.

    A model goes with its checkpoints; a checkpoint goes alone. Other adapters have DELETE /v1/adapters.
    """
    try:
        name = check_name(model_id)
    except AdapterError as error:
        raise ModelNotFound(f"The model '{model_id[:200]}' does not exist") from error
    if name == service.model_name:
        raise RequestError("The base model can't be deleted", "model")
    registered = name if view is None else view.own(name)
    await service.adapters.admin.catch_up()
    if not service.adapters.admin.has(registered):
        raise ModelNotFound(f"The model '{name}' does not exist")
    own_name = _without_tenant(name) if view is None else view.short(registered)
    if parse_fine_tuned(own_name) is None:
        raise RequestError(
            "Only fine-tuned models are deleted so: DELETE /v1/adapters deletes others", "model"
        )
    try:
        await service.adapters.deletions.delete(registered, DEFAULT_DEADLINE)
    except AdapterInUse as error:
        raise (error if view is None else AdapterInUse("an alias points to it: delete that first")) from None
    except AdapterNotFound as error:
        raise ModelNotFound(f"The model '{name}' does not exist") from error
    checkpoints = [each for each in service.adapters.mirror.names if each.startswith(registered + CHECKPOINT)]
    for checkpoint in checkpoints:
        with suppress(AdapterNotFound, AdapterInUse):  # deleted already, or an alias wants it
            await service.adapters.deletions.delete(checkpoint, 0.0)
    return Json({"id": model_id, "object": "model", "deleted": True})


def _without_tenant(name: str) -> str:
    """What a fine-tuned model's owner calls it, of how an admin does."""
    return name if name.startswith("ft:") else name.partition("/")[2]
