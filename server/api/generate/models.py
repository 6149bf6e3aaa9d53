"""``GET /v1/models``: the base model, adapters that serve, aliases; one by one, also revisions and mixes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from manylora.adapters.errors import AdapterError, AdapterNotFound
from manylora.adapters.mix import MixTerm, parse_mix
from manylora.adapters.registry.records import AliasRecord
from manylora.server.api.access.scopes import ADMIN, TENANT, CallerScope, CallerTenant, KeyScope, needs
from manylora.server.api.generate.mix_card import mix_facts, prompt_facts, revision_facts
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import ModelNotFound
from manylora.server.names.status import Registered
from manylora.server.service import Service

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List what can be asked for")
@needs(TENANT)
async def list_models(service: ServiceState, caller: CallerScope, tenant: CallerTenant) -> Response:
    """The base model first, then adapters and aliases, each by name. Mixes of them need no entry."""
    adapters = sorted(service.adapters.views.serving(), key=lambda adapter: adapter.name)
    aliases = service.adapters.aliases.list()
    if tenant is not None:
        resolver = service.adapters.resolver
        adapters = [each for each in adapters if tenant.allows(each.name)]
        aliases = [each for each in aliases if resolver.is_visible(each.name, tenant.allows)]
    cards = [_base_card(service, caller)] if tenant is None or tenant.allows(None) else []
    cards += [_adapter_card(service, each, caller) for each in adapters]
    cards += [_alias_card(service, alias) for alias in aliases]
    return Json({"object": "list", "data": cards})


@router.get("/{model_id:path}", summary="One model")
@needs(TENANT)
async def retrieve_model(
    service: ServiceState, caller: CallerScope, tenant: CallerTenant, model_id: str
) -> Response:
    """The base model, an adapter, a revision, an alias or a mix: whatever ``model`` may be in a request.

    404 ``model_not_found`` for anything else, also for what only a request would fetch.
    """
    try:
        terms = () if model_id == service.model_name else parse_mix(model_id)
        if tenant is not None:
            service.adapters.resolver.check_visible(terms, tenant.allows)
        if not terms:
            return Json(_base_card(service, caller))
        return Json(await _card(service, model_id, terms, caller))
    except AdapterNotFound as error:
        raise ModelNotFound(str(error) if caller is ADMIN else error.public or str(error)) from error
    except AdapterError as error:  # no name, and no mix
        raise ModelNotFound(f"The model '{model_id[:200]}' does not exist: {error}") from error


async def _card(
    service: Service, model_id: str, terms: Sequence[MixTerm], caller: KeyScope
) -> dict[str, Any]:
    """The card of what ``model_id`` was parsed into."""
    only = terms[0]
    if model_id in {alias.name for alias in service.adapters.aliases.list()}:
        return _alias_card(service, service.adapters.aliases.get(model_id))
    if model_id == only.name:
        return _adapter_card(service, service.adapters.views.get(model_id), caller)
    created, members = mix_facts(service, terms)
    card = {**_card_head(service, model_id, created), "root": model_id, "adapters": members}
    if len(terms) == 1 and only.weight == 1.0 and "revision" in members[0]:
        card |= await revision_facts(service, only.name, members[0]["revision"])
    return card


def _card_head(service: Service, name: str, created: float) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(created),
        "owned_by": "manylora",
        "root": name,
        "parent": service.model_name,
        "max_model_len": service.max_model_len,
    }


def _base_card(service: Service, caller: KeyScope) -> dict[str, Any]:
    head = {**_card_head(service, service.model_name, service.started), "parent": None}
    return {**head, "root": service.config.model} if caller is ADMIN else head


def _adapter_card(service: Service, adapter: Registered, caller: KeyScope) -> dict[str, Any]:
    return {
        **_card_head(service, adapter.name, adapter.created),
        "root": adapter.source if caller is ADMIN else adapter.name,
        "revision": adapter.digest[:8],
        "rank": adapter.rank,
        "modules": adapter.modules,
        "bytes": adapter.nbytes,
        "resident": adapter.resident,
        **prompt_facts(service, adapter.virtual_tokens),
        **({} if adapter.labels is None else {"task": "classify", "labels": adapter.labels}),
    }


def _alias_card(service: Service, alias: AliasRecord) -> dict[str, Any]:
    targets = ", ".join(target for target, _ in alias.arms)
    return {**_card_head(service, alias.name, alias.created), "root": targets}
