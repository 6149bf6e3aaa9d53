"""``/v1/aliases``: names that stand for a model string, or for a weighted split of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import Field

from manylora.adapters.errors import AdapterExists, AdapterNameError, AdapterNotFound, MixError
from manylora.adapters.mix import MAX_ENTRIES, check_name, format_mix
from manylora.adapters.registry.records import AliasRecord
from manylora.server.api.access.scopes import MANAGE, needs
from manylora.server.api.access.views import CallerView, shown_target
from manylora.server.api.admin.arm_json import arms_json
from manylora.server.api.admin.json_views import alias_json
from manylora.server.api.admin.own_names import ManagedName, check_not_base
from manylora.server.api.http.body import RequestBody, bounded, parse_body
from manylora.server.api.http.error_context import blame
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import MAX_MODEL_LENGTH
from manylora.server.api.http.names_in_paths import NAME
from manylora.server.api.http.openapi import (
    ADAPTER,
    ADAPTER_OR_BASE,
    SECOND_ADAPTER_OR_BASE,
    documented,
    example,
)
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import RequestError
from manylora.server.names.aliases import target_terms
from manylora.server.names.view import called
from manylora.server.service import Service
from manylora.server.tenants.view import TenantView

router = APIRouter(prefix="/v1/aliases", tags=["adapters"])

_SPLIT = [{"target": ADAPTER, "share": 0.9}, {"target": SECOND_ADAPTER_OR_BASE, "share": 0.1}]
_EXAMPLES = {
    "target": example("Another name for one", {"target": ADAPTER_OR_BASE}),
    "split": example("A tenth of the users get another", {"split": _SPLIT}),
}

Target = Annotated[str, Field(min_length=1, max_length=MAX_MODEL_LENGTH)]


class Arm(RequestBody):
    """One part of a split."""

    target: Target = Field(description="A model string: 'support', 'support@3f9a1c2e', 'a*0.7+b*0.3'.")
    share: float = Field(gt=0, le=1e6, allow_inf_nan=False, description="Relative to the other shares.")


class AliasBody(RequestBody):
    """What the alias stands for: either ``target`` or ``split``."""

    target: Target | None = None
    split: Annotated[list[Arm], bounded(MAX_ENTRIES, "split")] | None = None
    reset: bool | None = Field(None, description="Begin to count afresh for targets that stay, too.")

    @property
    def arms(self) -> list[tuple[str, float]]:
        """The targets and their shares."""
        if (self.target is None) == (self.split is None):
            raise RequestError("Give either 'target' or 'split'", "target")
        if self.target is not None:
            return [(self.target, 1.0)]
        if not self.split:
            raise RequestError("'split' must not be empty", "split")
        targets = [arm.target for arm in self.split]
        for index, target in enumerate(targets):
            if target in targets[:index]:
                raise RequestError(
                    f"'{target}' is in the split twice: give it one share", f"split[{index}].target"
                )
        return [(arm.target, arm.share) for arm in self.split]


@router.get("", summary="List aliases")
@needs(MANAGE)
async def list_aliases(service: ServiceState, view: CallerView) -> Response:
    """All aliases, by name; with a tenant's key, the tenant's own."""
    records = [each for each in service.adapters.aliases.list() if view is None or view.owns(each.name)]
    data = [alias_json(_seen(service, record, view)) for record in records]
    return Json({"object": "list", "data": data})


@router.get(f"/{NAME}", summary="One alias")
@needs(MANAGE)
async def get_alias(service: ServiceState, view: CallerView, name: ManagedName) -> Response:
    """What an alias stands for, and what the answers of each of its arms have come to on all servers.

    Means and rates carry 95% confidence intervals, and so do the differences from the first arm. There are
    no differences before both arms have 10 values.
    """
    with blame("name"):
        record, counted = await service.adapters.experiments.totals(name)
    seen = _seen(service, record, view)
    targets = zip(record.arms, seen.arms, strict=True)
    told = {shown: counted[target] for (target, _), (shown, _) in targets}
    return Json({**alias_json(seen), **arms_json(seen, told)})


@router.put(
    f"/{NAME}", summary="Make a name stand for others", openapi_extra=documented(AliasBody, _EXAMPLES)
)
@needs(MANAGE)
async def put_alias(
    service: ServiceState,
    view: CallerView,
    name: ManagedName,
    body: Annotated[AliasBody, Depends(parse_body(AliasBody))],
) -> Response:
    """A request for the alias runs with its target, or with one of the split: the same for the same ``user``.

    Replaces what the alias stood for; requests that run keep what they have. What has been counted of a
    target is kept while the alias has it, unless ``reset``.
    """
    arms, param = body.arms, "target" if body.split is None else "split"
    with blame("name"):
        check_name(name)
        check_not_base(service, view, name)
    with blame("name", AdapterExists), blame(param, (AdapterNotFound, MixError, AdapterNameError)):
        if view is None:
            record = await service.adapters.aliases.put(name, arms, reset=bool(body.reset))
        else:
            record = await _put_own(service, view, name, arms, reset=bool(body.reset))
        return Json(alias_json(_seen(service, record, view)))


@router.delete(f"/{NAME}", summary="Delete an alias")
@needs(MANAGE)
async def delete_alias(service: ServiceState, view: CallerView, name: ManagedName) -> Response:
    """Requests for it are refused from now on; its targets stay."""
    with blame("name"):
        await service.adapters.aliases.delete(name)
    return Json(
        {"id": name if view is None else view.short(name), "object": "alias.deleted", "deleted": True}
    )


async def _put_own(
    service: Service, view: TenantView, name: str, arms: Sequence[tuple[str, float]], *, reset: bool
) -> AliasRecord:
    """A tenant's alias stands for its own adapters, so that nobody else's is kept from being deleted.

    Raises:
        AdapterNotFound: it has no such adapter.
        MixError: the alias, or what it stands for, is another alias or one's target.
    """
    found: list[tuple[str, float]] = []
    for target, share in arms:
        terms = target_terms(target, service.model_name)
        meant = service.adapters.resolver.visible_terms(terms, view)
        others = [asked.name for asked, term in zip(terms, meant, strict=True) if not view.owns(term.name)]
        if others:
            raise MixError(f"{others[0]!r} is not your own: an alias stands for adapters that are")
        found.append((format_mix(meant) if meant else target, share))
    try:
        return await service.adapters.aliases.put(name, found, reset=reset)
    except MixError:  # would name the other, which may be an operator's
        raise MixError("an alias stands for adapters, and no other alias for it") from None


def _seen(service: Service, record: AliasRecord, view: TenantView | None) -> AliasRecord:
    """An alias by the names that the caller has for it and for what it stands for."""
    arms = tuple((shown_target(target, service.model_name, view), share) for target, share in record.arms)
    return replace(record, name=called(record.name, view), arms=arms)
