"""``GET /v1/models``: the base model, adapters that serve, aliases; one by one, also revisions and mixes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Response

from manylora.adapters.errors import AdapterError, AdapterNotFound
from manylora.adapters.mix import MixTerm, parse_mix
from manylora.adapters.registry.records import AliasRecord
from manylora.server.api.access.scopes import ADMIN, TENANT, CallerScope, KeyScope, needs
from manylora.server.api.access.views import CallerNames, shown_target
from manylora.server.api.generate.mix_card import mix_facts, prompt_facts, revision_facts
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import ModelNotFound
from manylora.server.names.status import Registered
from manylora.server.names.view import called
from manylora.server.service import Service
from manylora.server.tenants.view import TenantView
from manylora.server.vllm.pods import PodView

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List what can be asked for")
@needs(TENANT)
async def list_models(service: ServiceState, caller: CallerScope, view: CallerNames) -> Response:
    """The base model first, then adapters and aliases, each by name. Mixes of them need no entry."""
    adapters = service.adapters.views.serving()
    aliases = service.adapters.aliases.list()
    cards = [_base_card(service, caller)] if view is None or view.answers_base else []
    there = [each for each in adapters if _is_there(service, each.name, view)]
    cards += _by_name(_adapter_card(service, each, caller, view) for each in there)
    seen = [each for each in aliases if _is_there(service, each.name, view)]
    cards += _by_name(_alias_card(service, each, view) for each in seen)
    return Json({"object": "list", "data": cards})


@router.get("/{model_id:path}", summary="One model")
@needs(TENANT)
async def retrieve_model(
    service: ServiceState, caller: CallerScope, view: CallerNames, model_id: str
) -> Response:
    """The base model, an adapter, a revision, an alias or a mix: whatever ``model`` may be in a request.

    404 ``model_not_found`` for anything else, also for what only a request would fetch.
    """
    try:
        terms = () if model_id == service.model_name else parse_mix(model_id)
        if not terms and view is not None and view.answers_base:
            return Json(_base_card(service, caller))
        found = terms if view is None else service.adapters.resolver.visible_terms(terms, view)
        if not terms:
            return Json(_base_card(service, caller))
        return Json(await _card(service, model_id, found, caller, view))
    except AdapterNotFound as error:
        raise ModelNotFound(str(error) if caller is ADMIN else error.public or str(error)) from error
    except AdapterError as error:  # no name, and no mix
        raise ModelNotFound(f"The model '{model_id[:200]}' does not exist: {error}") from error


def _by_name(cards: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(cards, key=lambda card: str(card["id"]))


def _is_there(service: Service, name: str, view: TenantView | PodView | None) -> bool:
    """Whether who asks may use it, and can name it: none of their own is called as they would call it."""
    if view is None:
        return True
    return service.adapters.resolver.is_visible(name, view) and view.meaning(view.shown(name)) == name


async def _card(
    service: Service,
    model_id: str,
    terms: Sequence[MixTerm],
    caller: KeyScope,
    view: TenantView | PodView | None,
) -> dict[str, Any]:
    """The card of what ``model_id`` was parsed into."""
    only = terms[0]
    if terms == (MixTerm(only.name),):
        if only.name in {alias.name for alias in service.adapters.aliases.list()}:
            return _alias_card(service, service.adapters.aliases.get(only.name), view)
        if model_id in {only.name, called(only.name, view)}:
            return _adapter_card(service, service.adapters.views.get(only.name), caller, view)
    created, members = mix_facts(service, terms)
    members = [{**member, "name": called(member["name"], view)} for member in members]
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


def _adapter_card(
    service: Service, adapter: Registered, caller: KeyScope, view: TenantView | PodView | None
) -> dict[str, Any]:
    head = _card_head(service, called(adapter.name, view), adapter.created)
    return {
        **head,
        "root": adapter.source if caller is ADMIN else head["id"],
        "revision": adapter.digest[:8],
        "rank": adapter.rank,
        "modules": adapter.modules,
        "bytes": adapter.nbytes,
        "resident": adapter.resident,
        **prompt_facts(service, adapter.virtual_tokens),
        **({} if adapter.labels is None else {"task": "classify", "labels": adapter.labels}),
    }


def _alias_card(service: Service, alias: AliasRecord, view: TenantView | PodView | None) -> dict[str, Any]:
    targets = ", ".join(shown_target(target, service.model_name, view) for target, _ in alias.arms)
    return {**_card_head(service, called(alias.name, view), alias.created), "root": targets}
