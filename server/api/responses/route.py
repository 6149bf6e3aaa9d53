"""``/v1/responses``: answer, look at, cancel and delete responses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from manylora.adapters.format.faults import shown
from manylora.adapters.registry.whose import Whose
from manylora.server.api.access.scopes import TENANT, CallerWhose, needs
from manylora.server.api.files.pages import Parameters
from manylora.server.api.generate.generate import generate, resolved
from manylora.server.api.http import limits
from manylora.server.api.http.body import parse_body
from manylora.server.api.http.event_stream import EventStream
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.openapi import ADAPTER, BASE, STREAMED, documented, example
from manylora.server.api.http.state import ServiceState, ignored_fields
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.mix_request import read_mix
from manylora.server.api.request.token_ids import check_special_tokens
from manylora.server.api.responses.endpoint import ResponsesEndpoint, nothing, told
from manylora.server.api.responses.references import with_references
from manylora.server.api.responses.schemas import ResponsesBody
from manylora.server.errors import ObjectInUse, ObjectNotFound, RequestError
from manylora.server.responses.stored import Event, Item, StoredResponse
from manylora.server.service import Service

router = APIRouter(prefix="/v1/responses", tags=["responses"])

_QUESTION: dict[str, Any] = {"input": "What is the capital of France?", "max_output_tokens": 64}
_EXAMPLES = {
    "base": example("The base model", {"model": BASE, **_QUESTION}),
    "stream": example("A stream", {"model": BASE, **_QUESTION, "stream": True}),
    "adapter": example("An adapter", {"model": ADAPTER, **_QUESTION, "store": False}),
}


class RetrieveParameters(Parameters):
    """Query parameters of one response."""

    include: list[str] | None = Field(None, max_length=limits.MAX_TOOLS, description="Changes nothing.")
    stream: bool | None = Field(
        None, description="true: the events of a response that runs, or ran, with background and stream."
    )
    starting_after: int | None = Field(
        None,
        ge=0,
        le=limits.INT64_MAX,
        description="With stream: the sequence_number of the last event known.",
    )
    include_obfuscation: bool | None = Field(None, description="Changes nothing.")


class ItemParameters(Parameters):
    """Query parameters that say which items to list."""

    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = Field(None, max_length=limits.MAX_RESPONSE_ID_LENGTH)
    include: list[str] | None = Field(None, max_length=limits.MAX_TOOLS, description="Changes nothing.")


@router.post(
    "", summary="Answer items", responses=STREAMED, openapi_extra=documented(ResponsesBody, _EXAMPLES)
)
@needs(TENANT)
async def create(
    request: Request,
    service: ServiceState,
    whose: CallerWhose,
    body: Annotated[ResponsesBody, Depends(parse_body(ResponsesBody, rules_of(Place.RESPONSES).sift))],
) -> Response:
    """Answer ``input`` with the base model, an adapter or a mix; as a stream of events if asked."""
    _check(service, body)
    check_special_tokens(request, body.allow_special_tokens)
    mix = read_mix(service, body.model, body.adapters, body.end_user)
    before = await _before(service, body.previous_response_id, whose)
    body = await _with_items(service, body, whose)
    endpoint = ResponsesEndpoint(service, body, before, ignored_fields(request), whose.tenant)
    return await generate(service, request, mix, endpoint)


@router.post(
    "/input_tokens", summary="Count the tokens of items", openapi_extra=documented(ResponsesBody, _EXAMPLES)
)
@needs(TENANT)
async def input_tokens(
    request: Request,
    service: ServiceState,
    whose: CallerWhose,
    body: Annotated[ResponsesBody, Depends(parse_body(ResponsesBody, rules_of(Place.RESPONSES).sift))],
) -> Response:
    """How many tokens a request would read."""
    check_special_tokens(request, body.allow_special_tokens)
    mix = read_mix(service, body.model, body.adapters, body.end_user)
    before = await _before(service, body.previous_response_id, whose)
    body = await _with_items(service, body, whose)
    endpoint = ResponsesEndpoint(service, body, before, ignored_fields(request))
    async with resolved(service, request, mix) as found:
        (prompt,) = await endpoint.requests(found.conventions)
    return Json({"object": "response.input_tokens", "input_tokens": len(prompt.prompt_ids)})


@router.post("/compact", summary="Not supported")
@needs(TENANT)
async def compact() -> Response:
    """Conversations are not compacted here: ``truncation`` shortens them."""
    raise ObjectNotFound("Conversations are not compacted by this server: 'truncation' shortens them")


@router.get("/{response_id}", summary="Look at a response", responses=STREAMED)
@needs(TENANT)
async def retrieve(
    service: ServiceState,
    whose: CallerWhose,
    response_id: str,
    asked: Annotated[RetrieveParameters, Query()],
) -> Response:
    """A response that was kept, or that runs in the background; or its events, also those to come."""
    if asked.starting_after is not None and not asked.stream:
        raise RequestError("'starting_after' goes with 'stream'", "starting_after")
    found = await _found(service, response_id, whose)
    if not asked.stream:
        return Json(found.response)
    if found.events is None:
        raise RequestError(
            "'stream': its events are not kept: it was not asked for with 'background' and 'stream'",
            "stream",
        )
    place = 0 if asked.starting_after is None else asked.starting_after + 1
    return EventStream(told(_events(service, found, place)), nothing, {})


@router.get("/{response_id}/input_items", summary="List what a response answers")
@needs(TENANT)
async def input_items(
    service: ServiceState,
    whose: CallerWhose,
    response_id: str,
    asked: Annotated[ItemParameters, Query()],
) -> Response:
    """The items of the request, a page at a time."""
    items = (await _found(service, response_id, whose)).input
    if asked.order == "desc":
        items = items[::-1]
    if asked.after is not None:
        place = next((index for index, item in enumerate(items) if item["id"] == asked.after), None)
        if place is None:
            raise RequestError("'after' is no id of this list", "after")
        items = items[place + 1 :]
    page = items[: asked.limit]
    return Json(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > asked.limit,
        }
    )


@router.post("/{response_id}/cancel", summary="Cancel a response")
@needs(TENANT)
async def cancel(service: ServiceState, whose: CallerWhose, response_id: str) -> Response:
    """End a response that runs in the background; what it has so far stays."""
    await _found(service, response_id, whose)
    cancelled = await service.background.cancel(response_id)
    if cancelled is not None:
        return Json(cancelled.response)
    found = (await _found(service, response_id, whose)).response
    if not found["background"]:
        raise RequestError("Only responses with 'background' can be cancelled", "response_id")
    if found["status"] in ("queued", "in_progress"):
        raise ObjectInUse(f"Response '{found['id']}' runs on another server")
    return Json(found)


@router.delete("/{response_id}", summary="Delete a response")
@needs(TENANT)
async def delete(service: ServiceState, whose: CallerWhose, response_id: str) -> Response:
    """Forget a response. Those that go on from it stay."""
    found = await _found(service, response_id, whose)
    await service.background.cancel(found.id)
    await service.responses.remove(found.id)
    return Json({"id": found.id, "object": "response", "deleted": True})


def _check(service: Service, body: ResponsesBody) -> None:
    if body.background and (body.store is False or not service.responses.keeps):
        raise RequestError("'background' needs 'store': the response is asked for later", "background")


async def _before(service: Service, previous: str | None, whose: Whose) -> list[Item]:
    """The items that a request goes on from."""
    if previous is None:
        return []
    return _done(await _found(service, previous, whose, "previous_response_id")).items


async def _with_items(service: Service, body: ResponsesBody, whose: Whose) -> ResponsesBody:
    """The request with the items that its input refers to."""

    async def find(response_id: str, param: str) -> StoredResponse:
        found = await _found(service, response_id, whose, param)
        return _done(found)

    return body.model_copy(update={"input": await with_references(body.input, find)})


async def _events(service: Service, found: StoredResponse, place: int) -> AsyncIterator[list[Event]]:
    """The events of a response from the one at ``place`` on: those to come, or those that are kept."""
    if service.background.get(found.id) is None:
        yield (found.events or [])[place:]
        return
    async for events in service.background.follow(found.id, place):
        yield events


def _done(found: StoredResponse) -> StoredResponse:
    if found.response["status"] in ("queued", "in_progress"):
        raise ObjectInUse(f"Response '{found.id}' is not done yet")
    return found


async def _found(
    service: Service, response_id: str, whose: Whose, param: str = "response_id"
) -> StoredResponse:
    known = len(response_id) <= limits.MAX_RESPONSE_ID_LENGTH and response_id.isascii()
    running = service.background.get(response_id)
    found = running or (await service.responses.get(response_id) if known else None)
    if found is None or not whose.owns(found.tenant):
        raise ObjectNotFound(f"No response found with id '{shown(response_id)[1:-1]}'", param)
    return found
