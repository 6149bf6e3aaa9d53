"""``GET /v1/models``: the base model and every registered adapter."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from server.api.responses import Json
from server.api.state import ServiceState
from server.engine.status import Registered
from server.errors import ModelNotFound
from server.service import Service

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List what can be asked for")
async def list_models(service: ServiceState) -> Response:
    """The base model first, then the adapters by name. Mixes of them need no entry."""
    adapters = sorted(service.adapters.list(), key=lambda adapter: adapter.name)
    cards = [_base_card(service), *(_adapter_card(service, adapter) for adapter in adapters)]
    return Json({"object": "list", "data": cards})


@router.get("/{model_id:path}", summary="One of them")
async def retrieve_model(service: ServiceState, model_id: str) -> Response:
    """The base model or an adapter by name; 404 ``model_not_found`` for anything else."""
    if model_id == service.model_name:
        return Json(_base_card(service))
    for adapter in service.adapters.list():
        if adapter.name == model_id:
            return Json(_adapter_card(service, adapter))
    raise ModelNotFound(f"The model '{model_id[:200]}' does not exist")


def _base_card(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": int(service.started),
        "owned_by": "manylora",
        "root": service.config.model,
        "parent": None,
        "max_model_len": service.max_model_len,
    }


def _adapter_card(service: Service, adapter: Registered) -> dict[str, Any]:
    return {
        "id": adapter.name,
        "object": "model",
        "created": int(adapter.created),
        "owned_by": "manylora",
        "root": adapter.source,
        "parent": service.model_name,
        "max_model_len": service.max_model_len,
        "revision": adapter.digest[:8],
        "rank": adapter.rank,
        "modules": adapter.modules,
        "bytes": adapter.nbytes,
        "resident": adapter.resident,
    }
