"""``POST /classify``: which class a text belongs to, with vLLM's fields."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any
from uuid import uuid4

import torch
from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from manylora.adapters.format.classes import Classes, Problem
from manylora.adapters.mix import MAX_ENTRIES
from manylora.server.api.access.scopes import TENANT, needs
from manylora.server.api.generate.generate import generate
from manylora.server.api.generate.generation import Generation
from manylora.server.api.http import limits
from manylora.server.api.http.body import bounded, parse_body
from manylora.server.api.http.disconnect import unless_disconnected
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.model_header import model_header
from manylora.server.api.http.openapi import CLASSIFIER, documented, example
from manylora.server.api.http.state import ServiceState, ignored_fields
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.mix_request import read_mix, salt_of
from manylora.server.api.request.sampling import context_window
from manylora.server.api.request.schemas import AdapterWeight, AllowSpecialTokens, Messages, Prompts
from manylora.server.api.request.token_ids import Rendering, chat_ids, check_special_tokens, prompt_ids
from manylora.server.api.request.truncation import Ids, TruncatedBody
from manylora.server.engine.async_engine import GenerateRequest
from manylora.server.engine.sequence import SamplingParams
from manylora.server.errors import ContextTooLong, RequestError
from manylora.server.model.text.conventions import TextConventions
from manylora.server.service import Service

router = APIRouter(tags=["classify"])


class ClassifyBody(TruncatedBody):
    """Either ``input`` or ``messages``."""

    model: str = Field(
        min_length=1,
        max_length=limits.MAX_MODEL_LENGTH,
        description="An adapter that classifies, or 'adapter@revision'.",
    )
    adapters: Annotated[list[AdapterWeight], bounded(MAX_ENTRIES, "adapters")] | None = Field(
        None, description="The adapter as JSON; goes with the base model in 'model'."
    )
    input: Prompts | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(
        None, description="Default: true for input; messages get theirs from the chat template."
    )
    add_generation_prompt: bool | None = Field(None, description="Default: false. Only with messages.")
    allow_special_tokens: AllowSpecialTokens = None
    use_activation: bool | None = Field(
        None, description="Default: true. With false 'probs' holds what the head says, before softmax."
    )
    cache_salt: str | None = Field(None, min_length=1, max_length=limits.MAX_SALT_LENGTH)
    user: str | None = Field(
        None,
        max_length=limits.MAX_USER_LENGTH,
        description="Your end user's id: always gets the same arm of an alias.",
    )


_EXAMPLES = {
    CLASSIFIER: example(
        f"With {CLASSIFIER}",
        {"model": CLASSIFIER, "input": ["Great service, thank you!", "It broke after a day."]},
    )
}


@router.post("/classify", summary="Classify texts", openapi_extra=documented(ClassifyBody, _EXAMPLES))
@needs(TENANT)
async def classify(
    request: Request,
    service: ServiceState,
    body: Annotated[ClassifyBody, Depends(parse_body(ClassifyBody, rules_of(Place.CLASSIFY).sift))],
) -> Response:
    """The probabilities of an adapter's classes for each input, or for a conversation."""
    _check(service, body)
    check_special_tokens(request, body.allow_special_tokens, body.messages is not None)
    mix = read_mix(service, body.model, body.adapters, body.user)
    return await generate(service, request, mix, ClassifyEndpoint(service, body, ignored_fields(request)))


class ClassifyEndpoint:
    """Texts to be classified."""

    classifies = True
    input_param = "input"

    def __init__(self, service: Service, body: ClassifyBody, ignored: list[str]) -> None:
        """``ignored`` takes the paths of fields that the chat template has no place for."""
        self._service = service
        self._ignored = ignored
        self._body = body
        self._texts: list[Ids] = []
        self._classes: Classes | None = None
        self._id = f"classify-{uuid4().hex}"

    async def requests(self, conventions: TextConventions) -> list[GenerateRequest]:
        """Each text in tokens, of which the last one's scores are wanted."""
        classes = self._classes = conventions.classes
        assert classes is not None, "only what classifies gets here"
        self._texts = await _ids(self._service, conventions, self._body, self._ignored)
        return [
            _request(self._service, self._body, ids, conventions=conventions, request_id=self._id)
            for ids in self._texts
        ]

    async def respond(self, request: Request, generation: Generation) -> Response:
        """The classes' probabilities by text."""
        classes, activated = self._classes, self._body.use_activation is not False
        assert classes is not None
        try:
            scores, cached = await unless_disconnected(request, _gather(generation, len(self._texts)))
        finally:
            await generation.aclose()
        return Json(
            {
                "id": self._id,
                "object": "list",
                "created": int(time.time()),
                "model": generation.model,
                "data": [_entry(i, row, classes, activated) for i, row in enumerate(scores)],
                "usage": _usage(self._texts, cached),
            },
            headers=model_header(generation.model),
        )


def _check(service: Service, body: ClassifyBody) -> None:
    if (body.input is None) == (body.messages is None):
        raise RequestError("Give either 'input' or 'messages'", "input")
    if body.input is not None and body.add_generation_prompt is not None:
        raise RequestError("'add_generation_prompt' goes with 'messages'", "add_generation_prompt")
    if body.messages is not None and body.add_special_tokens:
        raise RequestError(
            "'add_special_tokens' is not supported with 'messages': the chat template writes them",
            "add_special_tokens",
            "unsupported_parameter",
        )
    body.truncation(service.max_model_len)


async def _ids(
    service: Service, conventions: TextConventions, body: ClassifyBody, ignored: list[str]
) -> list[Ids]:
    """The token ids of each text, cut as asked."""
    most, cut = service.max_model_len - conventions.virtual_tokens, body.truncation(service.max_model_len).cut
    if body.messages is not None:
        rendering = Rendering(bool(body.add_generation_prompt), special_tokens=body.allow_special_tokens)
        ids = await chat_ids(service, conventions, body.messages, rendering=rendering, ignored=ignored)
        return [cut(ids, most)]
    assert body.input is not None
    special = body.add_special_tokens is not False
    given = [text if isinstance(text, str) else cut(text, most) for text in body.input]
    found = [
        await prompt_ids(service, conventions, text, add_special_tokens=special, param="input")
        for text in given
    ]
    return [cut(ids, most) for ids in found]


def _request(
    service: Service, body: ClassifyBody, ids: Ids, *, conventions: TextConventions, request_id: str
) -> GenerateRequest:
    classes, virtual = conventions.classes, conventions.virtual_tokens
    assert classes is not None
    param = "input" if body.messages is None else "messages"
    if not ids:
        raise RequestError(f"'{param}' is empty: it must give at least one token", param)
    if virtual + len(ids) > service.max_model_len:
        raise ContextTooLong(
            f"{context_window(service.max_model_len, virtual)} and the text has {len(ids)}; "
            "'truncate_prompt_tokens': -1 cuts it",
            param,
        )
    read = without_padding(ids, classes.pad_id)
    return GenerateRequest(
        read,
        SamplingParams(max_tokens=0),
        salt=salt_of(body.cache_salt),
        request_id=request_id,
        logits_from=len(read) - 1,
    )


def without_padding(ids: Ids, pad_id: int | None) -> Ids:
    """``ids`` up to the last one that is no padding, where transformers' classification models look."""
    end = len(ids)
    while end > 1 and ids[end - 1] == pad_id:
        end -= 1
    return ids[:end]


async def _gather(generation: Generation, count: int) -> tuple[list[torch.Tensor], int]:
    """What the head says of each text, float32 [classes], and the tokens taken from the prefix cache."""
    scores: dict[int, torch.Tensor] = {}
    cached: dict[int, int] = {}
    async with aclosing(generation.events()) as events:
        async for index, delta in events:
            if delta.logits is not None:
                scores[index] = delta.logits.rows[0]
            cached[index] = delta.cached_tokens
    return [scores[index] for index in range(count)], sum(cached.values())


def _entry(index: int, scores: torch.Tensor, classes: Classes, activated: bool) -> dict[str, Any]:
    meant = classes.complete(len(scores))
    assert meant.labels is not None
    return {
        "index": index,
        "label": meant.labels[int(scores.argmax())],
        "probs": (_activate(scores, meant) if activated else scores).tolist(),
        "num_classes": len(scores),
    }


def _activate(scores: torch.Tensor, classes: Classes) -> torch.Tensor:
    if classes.problem is Problem.SINGLE_LABEL:
        return scores.softmax(-1)
    return scores.sigmoid() if classes.problem is Problem.MULTI_LABEL else scores


def _usage(texts: Sequence[Ids], cached: int) -> dict[str, Any]:
    tokens = sum(map(len, texts))
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
