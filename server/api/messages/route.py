"""``POST /v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's API."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from manylora.server.api.access.scopes import TENANT, needs
from manylora.server.api.generate.chat import ChatEndpoint
from manylora.server.api.generate.generate import generate, resolved
from manylora.server.api.http.body import parse_body
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.openapi import ADAPTER, BASE, STREAMED, documented, example
from manylora.server.api.http.state import ServiceState, ignored_fields
from manylora.server.api.messages.endpoint import MessagesEndpoint, check_thinking
from manylora.server.api.messages.schemas import CountTokensBody, MessagesBody
from manylora.server.api.messages.wording import WORDING
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.mix_request import read_mix
from manylora.server.api.request.token_ids import check_special_tokens

router = APIRouter(prefix="/v1/messages", tags=["messages"])

_QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
_EXAMPLES = {
    "base": example("The base model", {"model": BASE, "max_tokens": 64, **_QUESTION}),
    "stream": example("A stream", {"model": BASE, "max_tokens": 64, **_QUESTION, "stream": True}),
    "adapter": example("An adapter", {"model": ADAPTER, "max_tokens": 64, **_QUESTION}),
}


@router.post(
    "",
    summary="Answer turns of blocks",
    responses=STREAMED,
    openapi_extra=documented(MessagesBody, _EXAMPLES),
)
@needs(TENANT)
async def create(
    request: Request,
    service: ServiceState,
    body: Annotated[MessagesBody, Depends(parse_body(MessagesBody, rules_of(Place.MESSAGES).sift))],
) -> Response:
    """Answer ``messages`` with the base model, an adapter or a mix; as a stream of events if asked."""
    check_special_tokens(request, body.allow_special_tokens)
    mix = read_mix(service, body.model, body.adapters, body.end_user)
    return await generate(service, request, mix, MessagesEndpoint(service, body, ignored_fields(request)))


@router.post(
    "/count_tokens",
    summary="Count the tokens of turns",
    openapi_extra=documented(CountTokensBody, {"base": example("A question", {"model": BASE, **_QUESTION})}),
)
@needs(TENANT)
async def count_tokens(
    request: Request,
    service: ServiceState,
    body: Annotated[CountTokensBody, Depends(parse_body(CountTokensBody, rules_of(Place.COUNT_TOKENS).sift))],
) -> Response:
    """How many tokens the model would read, whether or not they fit."""
    check_special_tokens(request, body.allow_special_tokens)
    mix = read_mix(service, body.model, body.adapters)
    told: list[str] = []
    with WORDING.used():
        chat = ChatEndpoint(service, body.for_chat(), None, "max_tokens", told)
    async with resolved(service, request, mix) as found:
        check_thinking(body, found.conventions)
        with WORDING.used():
            prompt = await chat.prompt(found.conventions)
    ignored_fields(request).extend(map(WORDING.path, told))
    return Json({"input_tokens": len(prompt.ids)})
