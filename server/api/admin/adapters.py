"""``/v1/adapters``: which adapters there are, and everything to do with one but publishing it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import AfterValidator, Field

from manylora.adapters.errors import AdapterInUse
from manylora.adapters.mix import normal_name
from manylora.adapters.registry.records import State
from manylora.server.api.access.scopes import ADMIN, MANAGE, TENANT, needs
from manylora.server.api.access.views import CallerView
from manylora.server.api.admin.json_views import adapter_details_json, adapter_json, for_view, short_digest
from manylora.server.api.admin.own_names import ManagedName
from manylora.server.api.admin.publications import Publications, PublicationsState
from manylora.server.api.files.pages import Parameters, page_answer
from manylora.server.api.http.body import RequestBody, parse_body
from manylora.server.api.http.error_context import blame
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import (
    DEFAULT_DEADLINE,
    MAX_DEADLINE,
    MAX_PAGE,
    MAX_TAG_LENGTH,
    MAX_USER_LENGTH,
)
from manylora.server.api.http.model_header import model_header
from manylora.server.api.http.names_in_paths import NAME, Name
from manylora.server.api.http.openapi import documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.names.status import Filter
from manylora.server.service import Service
from manylora.server.tenants.view import TenantView

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

MAX_SHARES = 256
_SHARED = example("For two tenants", {"shared_with": ["acme", "globex"]})

Text = Annotated[str, Field(max_length=MAX_USER_LENGTH), AfterValidator(normal_name)]


class ListParameters(Parameters):
    """Query parameters that say which adapters to list."""

    prefix: Text = Field("", description="Only names that begin with this.")
    tag: str | None = Field(None, max_length=MAX_TAG_LENGTH, description="Only adapters with this tag.")
    state: State | None = Field(None, description="Only adapters in this state.")
    resident: bool | None = Field(None, description="Only adapters that are, or are not, on the device.")
    after: Text = Field("", description="Only names after this one: 'last_id' of the page before.")
    limit: int = Field(100, ge=1, le=MAX_PAGE, description="At most so many.")


class DeleteParameters(Parameters):
    """Query parameter that says how long a deletion waits for running requests."""

    deadline: float = Field(
        DEFAULT_DEADLINE, ge=0, le=MAX_DEADLINE, description="Seconds that running requests get to finish."
    )


class NoBody(RequestBody):
    """The body of a route that takes no fields."""


Share = Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._-]{0,63})$")]


class ChangeBody(RequestBody):
    """What can be changed of an adapter."""

    shared_with: list[Share] = Field(
        max_length=MAX_SHARES,
        description="Names of tenants that may use it besides the one whose it is; '*' is all. All of them: "
        "others may no more.",
    )


class RollbackBody(RequestBody):
    """Which revision to go back to."""

    revision: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{4,64}$",
        description="4 to 64 hex digits of it. By default the revision before the current one.",
    )


EmptyBody = Annotated[NoBody, Depends(parse_body(NoBody, optional=True))]


@router.get("", summary="List adapters")
@needs(MANAGE)
async def list_adapters(
    service: ServiceState, view: CallerView, asked: Annotated[ListParameters, Query()]
) -> Response:
    """Adapters by name, a page at a time: while ``has_more``, ask again with ``after`` = ``last_id``.

    A tenant's key lists the tenant's own.
    """
    own = "" if view is None else view.tenant.namespace
    wanted = Filter(own + asked.prefix, asked.tag, asked.state, asked.resident)
    after = asked.after and own + asked.after
    found = service.adapters.views.page(wanted, after=after, limit=asked.limit + 1)
    return page_answer(found, asked.limit, lambda status: for_view(adapter_json(status), view))


@router.get(f"/{NAME}", summary="One adapter")
@needs(MANAGE)
async def get_adapter(
    service: ServiceState, publications: PublicationsState, view: CallerView, name: ManagedName
) -> Response:
    """An adapter's state and revisions, where its bytes are, and what it has served."""
    with blame("name"):
        if not service.adapters.admin.has(name):  # another server may have published it a moment ago
            await service.adapters.admin.catch_up()
        return await details_response(service, publications, view, name)


@router.patch(
    f"/{NAME}",
    summary="Change an adapter",
    openapi_extra=documented(ChangeBody, {"shared": _SHARED}),
)
@needs(MANAGE)
async def change_adapter(
    service: ServiceState,
    publications: PublicationsState,
    view: CallerView,
    name: ManagedName,
    body: Annotated[ChangeBody, Depends(parse_body(ChangeBody))],
) -> Response:
    """Say which tenants may use an adapter besides the one whose it is. Requests that run are completed.

    Nobody is told whether there are tenants of these names.
    """
    with blame("name"):
        await service.adapters.admin.share(name, body.shared_with)
        return await details_response(service, publications, view, name)


@router.post(f"/{NAME}/pin", summary="Keep an adapter on the device")
@needs(ADMIN)
async def pin(service: ServiceState, name: Name, _: EmptyBody) -> Response:
    """Bring an adapter to the device, and do not evict it from there until it is unpinned."""
    with blame("name"):
        return Json(adapter_json(await service.adapters.admin.pin(name)))


@router.post(f"/{NAME}/unpin", summary="Let an adapter be evicted again")
@needs(ADMIN)
async def unpin(service: ServiceState, name: Name, _: EmptyBody) -> Response:
    """Let an adapter be evicted again; it stays where it is until others need the room."""
    with blame("name"):
        return Json(adapter_json(await service.adapters.admin.unpin(name)))


@router.post(f"/{NAME}/prefetch", summary="Bring an adapter in before it is asked for")
@needs(ADMIN)
async def prefetch(service: ServiceState, name: Name, _: EmptyBody) -> Response:
    """Bring an adapter to the device if unused ones can make room there, else to host memory."""
    with blame("name"):
        return Json(adapter_json(await service.adapters.admin.prefetch(name)))


@router.post(f"/{NAME}/evict", summary="Take an adapter off the device and out of host memory")
@needs(ADMIN)
async def evict(service: ServiceState, name: Name, _: EmptyBody) -> Response:
    """Evict an adapter; the next request brings it back from disk. Refused while it is in use or pinned."""
    with blame("name"):
        return Json(adapter_json(await service.adapters.admin.evict(name)))


@router.post(
    f"/{NAME}/rollback",
    summary="Go back to an earlier revision",
    openapi_extra=documented(RollbackBody, {"before": example("The one before", {})}, required=False),
)
@needs(MANAGE)
async def rollback(
    service: ServiceState,
    publications: PublicationsState,
    view: CallerView,
    name: ManagedName,
    body: Annotated[RollbackBody, Depends(parse_body(RollbackBody, optional=True))],
) -> Response:
    """Give new requests an earlier revision; those running keep theirs. Nothing is read again."""
    with blame("name" if body.revision is None else "revision"):
        await service.adapters.admin.rollback(name, body.revision)
    return await details_response(service, publications, view, name)


@router.delete(f"/{NAME}", summary="Delete an adapter")
@needs(MANAGE)
async def delete_adapter(
    service: ServiceState,
    publications: PublicationsState,
    view: CallerView,
    name: ManagedName,
    asked: Annotated[DeleteParameters, Query()],
) -> Response:
    """Refuse new requests at once, wait for running ones until the deadline, free what it took.

    What still runs then is completed; its memory is freed when it ends.
    """
    with blame("name"):
        try:
            deleted = await service.adapters.deletions.delete(name, asked.deadline)
        except AdapterInUse as error:
            raise (
                error if view is None else AdapterInUse("an alias points to it: delete that first")
            ) from None
    publications.forget(name)
    return Json(
        {
            "id": name if view is None else view.short(name),
            "object": "adapter.deleted",
            "deleted": True,
            "bytes_freed": deleted.bytes_freed,
            "drained": deleted.drained,
            "running": deleted.running,
        }
    )


async def details_response(
    service: Service,
    publications: Publications,
    view: TenantView | None,
    name: str,
    http_status: int = 200,
) -> Response:
    """The answer that describes an adapter, every revision it can be rolled back to, and its publication."""
    # In this order, what a publication that has ended did to the name is seen.
    publication = await publications.json(name, ADMIN if view is None else TENANT)
    status = service.adapters.views.status(name)
    revisions = await service.adapters.views.revisions(name)
    details = for_view(adapter_details_json(status, revisions, publication), view)
    headers = {} if status.digest is None else model_header(f"{details['id']}@{short_digest(status.digest)}")
    return Json(details, http_status, headers)
