"""``/v1/aliases``: names that stand for a model string, or for a weighted split of several."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response
from pydantic import AfterValidator, Field

from manylora.adapters.errors import AdapterExists, AdapterNameError, AdapterNotFound, MixError
from manylora.adapters.mix import MAX_ENTRIES, check_name, normal_name
from manylora.server.api.access.scopes import ADMIN, needs
from manylora.server.api.admin.arm_json import arms_json
from manylora.server.api.admin.json_views import alias_json
from manylora.server.api.http.body import RequestBody, bounded, parse_body
from manylora.server.api.http.error_context import blame
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import MAX_MODEL_LENGTH, MAX_USER_LENGTH
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

router = APIRouter(prefix="/v1/aliases", tags=["adapters"])

_SPLIT = [{"target": ADAPTER, "share": 0.9}, {"target": SECOND_ADAPTER_OR_BASE, "share": 0.1}]
_EXAMPLES = {
    "target": example("Another name for one", {"target": ADAPTER_OR_BASE}),
    "split": example("A tenth of the users get another", {"split": _SPLIT}),
}

Name = Annotated[str, Path(max_length=MAX_USER_LENGTH, description="The alias."), AfterValidator(normal_name)]
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
@needs(ADMIN)
async def list_aliases(service: ServiceState) -> Response:
    """All aliases, by name."""
    records = service.adapters.aliases.list()
    return Json({"object": "list", "data": [alias_json(record) for record in records]})


@router.get(f"/{NAME}", summary="One alias")
@needs(ADMIN)
async def get_alias(service: ServiceState, name: Name) -> Response:
    """What an alias stands for, and what the answers of each of its arms have come to on all servers.

    Means and rates carry 95% confidence intervals, and so do the differences from the first arm. There are
    no differences before both arms have 10 values.
    """
    with blame("name"):
        record, counted = await service.adapters.experiments.totals(name)
    return Json({**alias_json(record), **arms_json(record, counted)})


@router.put(
    f"/{NAME}", summary="Make a name stand for others", openapi_extra=documented(AliasBody, _EXAMPLES)
)
@needs(ADMIN)
async def put_alias(
    service: ServiceState, name: Name, body: Annotated[AliasBody, Depends(parse_body(AliasBody))]
) -> Response:
    """A request for the alias runs with its target, or with one of the split: the same for the same ``user``.

    Replaces what the alias stood for; requests that run keep what they have. What has been counted of a
    target is kept while the alias has it, unless ``reset``.
    """
    arms, param = body.arms, "target" if body.split is None else "split"
    with blame("name"):
        check_name(name)
    with blame("name", AdapterExists), blame(param, (AdapterNotFound, MixError, AdapterNameError)):
        return Json(alias_json(await service.adapters.aliases.put(name, arms, reset=bool(body.reset))))


@router.delete(f"/{NAME}", summary="Delete an alias")
@needs(ADMIN)
async def delete_alias(service: ServiceState, name: Name) -> Response:
    """Requests for it are refused from now on; its targets stay."""
    with blame("name"):
        await service.adapters.aliases.delete(name)
    return Json({"id": name, "object": "alias.deleted", "deleted": True})
