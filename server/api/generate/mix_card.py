"""What ``GET /v1/models/{id}`` says of a mix, and of one revision of an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from manylora.adapters.errors import AdapterNotFound, MixError
from manylora.adapters.mix import MixTerm
from manylora.server.merged.variants import VariantState
from manylora.server.names.resolve import asks_merged
from manylora.server.service import Service


def mix_facts(service: Service, terms: Sequence[MixTerm]) -> tuple[float, list[dict[str, Any]]]:
    """When a mix became what it is, in unix seconds, and its members with their revisions of now.

    Raises:
        AdapterNotFound: a member, its revision or the merged copy does not exist or does not serve.
        MixError: it is no mix that a request may ask for.
    """
    if asks_merged(terms):
        _check_merged(service, [replace(term, merged=False) for term in terms])
    members: list[dict[str, Any]] = []
    for term in terms:
        members += _members(service, term)
    return max(_created(service, term.name) for term in terms), members


def _check_merged(service: Service, terms: Sequence[MixTerm]) -> None:
    variant = service.adapters.merged.find(terms)
    if variant.state is not VariantState.READY:
        raise AdapterNotFound(f"the merged copy of {variant.model!r} is not ready")


def _members(service: Service, term: MixTerm) -> list[dict[str, Any]]:
    """The adapters that ``term`` stands for; an alias that splits its requests stands for itself."""
    if term.name == service.model_name:
        raise MixError(f"{term.name!r} is the base model, which is part of every mix")
    if term.revision is None and _is_split(service, term.name):
        return [{"name": term.name, "weight": term.weight}]
    return [
        {"name": found.name, "weight": found.weight, "revision": digest[:8]}
        for found, digest in service.adapters.resolver.digests([term])
    ]


def _is_split(service: Service, name: str) -> bool:
    try:
        return len(service.adapters.aliases.get(name).arms) > 1
    except AdapterNotFound:
        return False


def _created(service: Service, name: str) -> float:
    try:
        return service.adapters.aliases.get(name).created
    except AdapterNotFound:
        return service.adapters.views.get(name).created


def prompt_facts(service: Service, virtual_tokens: int) -> dict[str, Any]:
    """What a soft prompt takes of the context, and what it leaves for text."""
    if not virtual_tokens:
        return {}
    return {"virtual_tokens": virtual_tokens, "max_model_len": service.max_model_len - virtual_tokens}


async def revision_facts(service: Service, name: str, revision: str) -> dict[str, Any]:
    """What one revision is; the name may be an alias, of which this knows nothing."""
    try:
        records = await service.adapters.views.revisions(name)
    except AdapterNotFound:
        return {}
    for record in records:
        if record.digest.startswith(revision):
            return {
                "created": int(record.created),
                "revision": revision,
                "rank": record.rank,
                "modules": record.modules,
                "bytes": record.nbytes,
                "resident": service.adapters.residency.is_resident(record.digest),
                **prompt_facts(service, record.virtual_tokens),
                **({} if record.labels is None else {"task": "classify", "labels": record.labels}),
            }
    return {}
