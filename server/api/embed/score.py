"""``POST /v1/score``: how probable labels are behind a text, or how near two texts are."""

from __future__ import annotations

import time
from typing import Annotated
from uuid import uuid4

import torch
from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from manylora.server.api.access.scopes import TENANT, needs
from manylora.server.api.embed.body import PoolingBody
from manylora.server.api.embed.reading import Reader, Text
from manylora.server.api.embed.rerank import scores_answer, similarities
from manylora.server.api.http import limits
from manylora.server.api.http.body import bounded, parse_body
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.model_header import model_header
from manylora.server.api.http.openapi import BASE, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.schemas import Prompt, Texts
from manylora.server.errors import RequestError

router = APIRouter(tags=["embed"])

TokenId = Annotated[int, Field(ge=0, le=limits.INT64_MAX)]


class ScoreBody(PoolingBody):
    """SGLang's fields for labels (``query``, ``items``, …), or vLLM's for pairs of texts."""

    query: str | list[TokenId] | None = Field(None, description="What stands before each item.")
    items: Texts | None = Field(None, description="What is scored, each on its own.")
    label_token_ids: Annotated[list[TokenId], bounded(limits.MAX_LABELS, "label_token_ids")] | None = Field(
        None, description="The tokens whose probability behind query and item is asked for."
    )
    apply_softmax: bool | None = Field(
        None, description="Probabilities among the labels, in place of those among all tokens."
    )
    item_first: bool | None = Field(None, description="The item stands before the query.")
    text_1: Texts | None = None
    text_2: Texts | None = None


_EXAMPLES = {
    "Pairs of texts": example("Pairs", {"model": BASE, "text_1": "a pet", "text_2": ["A cat.", "A car."]})
}
_LABELS = ("query", "items", "label_token_ids", "apply_softmax", "item_first")


@router.post("/score", include_in_schema=False)
@router.post("/v1/score", summary="Score texts", openapi_extra=documented(ScoreBody, _EXAMPLES))
@needs(TENANT)
async def score(
    request: Request,
    service: ServiceState,
    body: Annotated[ScoreBody, Depends(parse_body(ScoreBody, rules_of(Place.SCORE).sift))],
) -> Response:
    """Probabilities of label tokens behind each item, or the cosine of two texts' embeddings."""
    request_id = f"score-{uuid4().hex}"
    reader = Reader(service, request, body, request_id)
    if body.text_1 is None and body.text_2 is None:
        return await _labels(reader, body)
    for name in _LABELS:
        if getattr(body, name) is not None:
            raise RequestError(f"'{name}' does not go with 'text_1' and 'text_2'", name)
    if body.text_1 is None or body.text_2 is None:
        missing = "text_1" if body.text_1 is None else "text_2"
        raise RequestError(f"'{missing}' is missing: give both texts", missing)
    first = [Text(each, "text_1") for each in body.text_1]
    second = [Text(each, "text_2") for each in body.text_2]
    if len(first) not in (1, len(second)):
        raise RequestError(
            f"'text_1' has {len(first)} texts and 'text_2' {len(second)}: one for all, or one for each",
            "text_1",
        )
    scores, read = await similarities(reader, service, body, first, second)
    return scores_answer(request_id, scores, read)


async def _labels(reader: Reader, body: ScoreBody) -> Response:
    for name in ("query", "items", "label_token_ids"):
        if getattr(body, name) is None:
            raise RequestError(f"'{name}' is missing: give 'query', 'items' and 'label_token_ids'", name)
    for name in ("pooling", "normalize"):
        if getattr(body, name) is not None:
            raise RequestError(f"'{name}' goes with 'text_1' and 'text_2'", name)
    assert body.query is not None
    assert body.items is not None
    assert body.label_token_ids is not None
    labels = body.label_token_ids
    query: Prompt = body.query if isinstance(body.query, str) else tuple(body.query)
    texts = [
        [Text(item, "items"), Text(query, "query")]
        if body.item_first
        else [Text(query, "query"), Text(item, "items")]
        for item in body.items
    ]
    read = await reader.last_logits(texts)
    unknown = next((label for label in labels if label >= read.vectors[0].shape[-1]), None)
    if unknown is not None:
        raise RequestError(
            f"'label_token_ids' names {unknown}, which this model doesn't know", "label_token_ids"
        )
    return Json(
        {
            "scores": [_probabilities(row, labels, bool(body.apply_softmax)) for row in read.vectors],
            "model": read.model,
            "object": "scoring",
            "created": int(time.time()),
            "usage": read.usage,
        },
        headers=model_header(read.model),
    )


def _probabilities(logits: torch.Tensor, labels: list[int], among_labels: bool) -> list[float]:
    if among_labels:
        return logits[labels].double().softmax(-1).tolist()
    return logits.double().softmax(-1)[labels].tolist()
