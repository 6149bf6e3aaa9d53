"""``POST /v1/adapters/{name}/compose``: a new adapter out of several that are served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from manylora.adapters.errors import AdapterError, AdapterNotFound, MixError
from manylora.adapters.format.files import KEPT_NAMES
from manylora.adapters.merge.compose import compose, save
from manylora.adapters.merge.recipe import Member, Recipe, RecipeError, recipe_of
from manylora.adapters.mix import MAX_ENTRIES, MixTerm, format_mix
from manylora.server.api.access.scopes import MANAGE, needs
from manylora.server.api.access.views import CallerView
from manylora.server.api.admin.own_names import ManagedName
from manylora.server.api.admin.publications import PublicationsState
from manylora.server.api.admin.publish_request import PublishRequest
from manylora.server.api.admin.put_adapter import PutParameters, check_free, publish
from manylora.server.api.http.body import RequestBody, parse_body
from manylora.server.api.http.error_context import Blamed
from manylora.server.api.http.limits import MAX_USER_LENGTH
from manylora.server.api.http.names_in_paths import NAME
from manylora.server.api.http.openapi import LAST_MEMBER, MEMBER, PUBLISHED, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.api.request.mix_entries import first_missing, terms_of
from manylora.server.errors import RequestError
from manylora.server.service import Service
from manylora.server.tenants.view import TenantView

router = APIRouter(prefix=f"/v1/adapters/{NAME}/compose", tags=["adapters"])

_MAX_SEED = 2**63 - 1


class MemberBody(RequestBody):
    """One member."""

    name: str = Field(
        min_length=1,
        max_length=MAX_USER_LENGTH,
        description="An adapter, a revision of it, or an alias with one target.",
    )
    weight: float = 1.0


class ComposeBody(RequestBody):
    """What to compose, and how."""

    members: list[MemberBody] = Field(min_length=1, max_length=MAX_ENTRIES)
    method: str = Field(
        "linear",
        max_length=32,
        description="linear (exact), svd, ties, dare_linear, dare_ties or magnitude_prune.",
    )
    rank: int | None = Field(None, ge=1, le=4096, description="Of the result: every method but linear.")
    density: float | None = Field(
        None, gt=0, le=1, description="Share of each member's changes that is kept."
    )
    seed: int | None = Field(None, ge=0, le=_MAX_SEED, description="Of what DARE drops.")
    sign_method: str | None = Field(None, max_length=32, description="total or frequency: ties, dare_ties.")
    tags: list[str] | None = None


_HALVES = [{"name": MEMBER, "weight": 0.5}, {"name": LAST_MEMBER, "weight": 0.5}]


@router.post(
    "",
    summary="Compose an adapter out of others",
    responses=PUBLISHED,
    openapi_extra=documented(ComposeBody, {"halves": example("Half and half", {"members": _HALVES})}),
)
@needs(MANAGE)
async def compose_adapter(
    *,
    request: Request,
    service: ServiceState,
    publications: PublicationsState,
    view: CallerView,
    name: ManagedName,
    asked: Annotated[PutParameters, Query()],
    body: Annotated[ComposeBody, Depends(parse_body(ComposeBody))],
) -> Response:
    """Compute the members' combination and publish it as a revision of ``name``, like an upload.

    The revisions are those the members' names have now; they, the weights and the method are recorded as
    the new revision's lineage.
    """
    check_free(request, service, view, name, asked)
    found = await _find(service, view, terms_of(body.members, "members"))
    recipe = _recipe(body)

    def fetch(into: Path) -> None:
        members = [Member(t.name, service.adapters.loader.artifact(d), t.weight) for t, d in found]
        composed = into / "composed"
        save(compose(members, recipe, service.adapters.base), composed)
        for file in sorted(composed.iterdir()):
            if file.name in KEPT_NAMES:
                file.rename(into / file.name)
            else:
                file.unlink()
        composed.rmdir()

    tags = None if body.tags is None else tuple(body.tags)
    mix = format_mix(term for term, _ in found)
    wanted = PublishRequest(f"compose:{recipe.method}:{mix}", "members", tags, fetch)
    return await publish(request, service, publications, view, name, asked=asked, wanted=wanted)


def _recipe(body: ComposeBody) -> Recipe:
    try:
        return recipe_of(
            body.method,
            rank=body.rank,
            density=body.density,
            seed=body.seed,
            sign_method=body.sign_method,
        )
    except RecipeError as error:
        raise RequestError(str(error), error.settings[0]) from error


async def _find(
    service: Service, view: TenantView | None, terms: Sequence[MixTerm]
) -> list[tuple[MixTerm, str]]:
    """The members, with aliases replaced, and the revisions they have now.

    Raises:
        Blamed: one does not exist, or is no adapter; names the entry where it can.
    """
    resolver = service.adapters.resolver
    try:
        found = resolver.digests(await resolver.look_up(terms, view))
        _check_plain([term for term, _ in found])
    except AdapterNotFound as error:
        raise Blamed(error, first_missing(resolver, terms, "members", view)) from error
    except AdapterError as error:
        raise Blamed(error, "members") from error
    return found


def _check_plain(terms: Sequence[MixTerm]) -> None:
    """Raise MixError unless each of the members is an adapter."""
    merged = next((term.name for term in terms if term.merged), None)
    if merged is not None:
        raise MixError(f"'{merged}@merged' is a merged copy: only adapters can be composed")
    if not terms:
        raise MixError("there is nothing to compose: that is the base model")
