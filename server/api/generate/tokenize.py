"""``POST /tokenize`` and ``/detokenize``, with vLLM's fields."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import FailFast, Field

from manylora.server.api.access.scopes import TENANT, needs
from manylora.server.api.files.pages import Parameters
from manylora.server.api.generate.generate import resolved
from manylora.server.api.http.body import RequestBody, bounded, parse_body
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import MAX_DETOKENIZE, MAX_MODEL_LENGTH
from manylora.server.api.http.openapi import documented, example
from manylora.server.api.http.state import ServiceState, ignored_fields
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.mix_request import MixRequest, read_mix
from manylora.server.api.request.sampling_body import TokenId
from manylora.server.api.request.schemas import AllowSpecialTokens, Messages
from manylora.server.api.request.token_ids import Rendering, chat_ids, check_special_tokens, prompt_ids
from manylora.server.api.request.tools import Tools
from manylora.server.errors import RequestError
from manylora.server.model.text.conventions import TextConventions
from manylora.server.service import Service

router = APIRouter(tags=["tokenize"])

Model = Annotated[
    str | None, Field(max_length=MAX_MODEL_LENGTH, description="Any served model or mix. Default: the base.")
]


class TokenizeBody(RequestBody):
    """Either ``prompt`` or ``messages``."""

    model: Model = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(
        None, description="Default: true for a prompt; messages get theirs from the chat template."
    )
    add_generation_prompt: bool | None = Field(None, description="Default: true. Only with messages.")
    allow_special_tokens: AllowSpecialTokens = None
    continue_final_message: bool | None = Field(
        None, description="Leave the last message open. Only with messages."
    )
    return_token_strs: bool | None = None
    tools: Tools | None = Field(None, description="What the model hears of. Only with messages.")


class DetokenizeBody(RequestBody):
    """The ids to turn into text."""

    model: Model = None
    tokens: Annotated[list[TokenId], FailFast(), bounded(MAX_DETOKENIZE, "tokens")]


@router.post(
    "/tokenize",
    summary="Text or messages to token ids",
    openapi_extra=documented(TokenizeBody, {"text": example("A text", {"prompt": "Hello"})}),
)
@needs(TENANT)
async def tokenize(
    request: Request,
    service: ServiceState,
    body: Annotated[TokenizeBody, Depends(parse_body(TokenizeBody, rules_of(Place.TOKENIZE).sift))],
) -> Response:
    """The ids exactly as a generation request would see them."""
    check_special_tokens(request, body.allow_special_tokens, body.messages is not None)
    async with resolved(service, request, _mix(service, body.model), classify=None) as found:
        ids = await _ids(service, found.conventions, body, ignored_fields(request))
        text = found.conventions.tokenizer.token_text
        texts = [text(token) for token in ids] if body.return_token_strs else None
    return Json(
        {
            "count": len(ids),
            "max_model_len": service.max_model_len - found.conventions.virtual_tokens,
            "tokens": ids,
            "token_strs": texts,
        }
    )


async def _ids(
    service: Service, conventions: TextConventions, body: TokenizeBody, ignored: list[str]
) -> tuple[int, ...]:
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("Give either 'prompt' or 'messages'", "prompt")
    if body.prompt is not None:
        for name in ("add_generation_prompt", "continue_final_message", "tools"):
            if getattr(body, name) is not None:
                raise RequestError(f"'{name}' goes with 'messages'", name)
        return await prompt_ids(
            service, conventions, body.prompt, add_special_tokens=body.add_special_tokens is not False
        )
    if body.add_special_tokens:
        raise RequestError(
            "'add_special_tokens' is not supported with 'messages': the chat template writes them",
            "add_special_tokens",
            "unsupported_parameter",
        )
    assert body.messages is not None
    rendering = Rendering(
        body.add_generation_prompt is not False,
        bool(body.continue_final_message),
        special_tokens=body.allow_special_tokens,
        tools=[tool.for_template() for tool in body.tools] if body.tools else None,
    )
    return await chat_ids(service, conventions, body.messages, rendering=rendering, ignored=ignored)


@router.post(
    "/detokenize",
    summary="Token ids to text",
    openapi_extra=documented(DetokenizeBody, {"ids": example("Some ids", {"tokens": [1, 2, 3]})}),
)
@needs(TENANT)
async def detokenize(
    request: Request,
    service: ServiceState,
    body: Annotated[DetokenizeBody, Depends(parse_body(DetokenizeBody, rules_of(Place.DETOKENIZE).sift))],
) -> Response:
    """The text of ``tokens``, special ones written out."""
    async with resolved(service, request, _mix(service, body.model), classify=None) as found:
        tokenizer = found.conventions.tokenizer
        if any(token >= tokenizer.vocab_size for token in body.tokens):
            raise RequestError(f"'tokens': token ids go from 0 to {tokenizer.vocab_size - 1}", "tokens")
        text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special_tokens=False)
    return Json({"prompt": text})


class InfoParameters(Parameters):
    """Whose tokenizer."""

    model: Model = None


@router.get("/tokenizer_info", summary="Special tokens and size of a vocabulary")
@needs(TENANT)
async def tokenizer_info(
    request: Request, service: ServiceState, asked: Annotated[InfoParameters, Query()]
) -> Response:
    """What programs that tokenize by this server have to know beside ``/tokenize``."""
    async with resolved(service, request, _mix(service, asked.model), classify=None) as found:
        tokenizer = found.conventions.tokenizer
        room = service.max_model_len - found.conventions.virtual_tokens
    return Json({**tokenizer.special_tokens, "vocab_size": tokenizer.vocab_size, "model_max_length": room})


def _mix(service: Service, model: str | None) -> MixRequest:
    return MixRequest(()) if model is None else read_mix(service, model)
