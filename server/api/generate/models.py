"""``GET /v1/models``: the base model, every adapter that serves, and every alias."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Response

from manylora.adapters.errors import AdapterNotFound
from manylora.adapters.registry.records import AliasRecord
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import ModelNotFound
from manylora.server.names.status import Registered
from manylora.server.service import Service

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List what can be asked for")
async def list_models(service: ServiceState) -> Response:
    """The base model first, then adapters and aliases, each by name. Mixes of them need no entry."""
    adapters = sorted(service.adapters.views.serving(), key=lambda adapter: adapter.name)
    cards = [_base_card(service), *(_adapter_card(service, adapter) for adapter in adapters)]
    cards += [_alias_card(service, alias) for alias in service.adapters.aliases.list()]
    return Json({"object": "list", "data": cards})


@router.get("/{model_id:path}", summary="One model")
async def retrieve_model(service: ServiceState, model_id: str) -> Response:
    """The base model, an adapter or an alias by name; 404 ``model_not_found`` for anything else."""
    if model_id == service.model_name:
        return Json(_base_card(service))
    with suppress(AdapterNotFound):
        return Json(_adapter_card(service, service.adapters.views.get(model_id)))
    with suppress(AdapterNotFound):
        return Json(_alias_card(service, service.adapters.aliases.get(model_id)))
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
        **({} if adapter.labels is None else {"task": "classify", "labels": adapter.labels}),
    }


def _alias_card(service: Service, alias: AliasRecord) -> dict[str, Any]:
    return {
        "id": alias.name,
        "object": "model",
        "created": int(alias.created),
        "owned_by": "manylora",
        "root": ", ".join(target for target, _ in alias.arms),
        "parent": service.model_name,
        "max_model_len": service.max_model_len,
    }
