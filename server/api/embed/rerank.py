"""``POST /v1/rerank`` and ``/v1/score`` of pairs: how near texts are by their embeddings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from manylora.server.api.access.scopes import TENANT, needs
from manylora.server.api.embed.body import PoolingBody
from manylora.server.api.embed.pooling import pooling_for
from manylora.server.api.embed.reading import Read, Reader, Text
from manylora.server.api.http import limits
from manylora.server.api.http.body import bounded, parse_body
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.model_header import model_header
from manylora.server.api.http.openapi import BASE, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.schemas import Document
from manylora.server.service import Service

router = APIRouter(tags=["embed"])


class RerankBody(PoolingBody):
    """Jina's and Cohere's fields, as vLLM takes them."""

    query: str = Field(min_length=1)
    documents: Annotated[list[Document], bounded(limits.MAX_TEXTS, "documents")] = Field(min_length=1)
    top_n: int | None = Field(None, ge=0, le=limits.MAX_TOKENS, description="Default, and 0: all of them.")
    return_documents: bool | None = Field(None, description="Default: true.")


_EXAMPLES = {
    "With the base": example(
        "With the base", {"model": BASE, "query": "a pet", "documents": ["A cat.", "A car."], "top_n": 1}
    )
}


@router.post("/rerank", include_in_schema=False)
@router.post("/v2/rerank", include_in_schema=False)
@router.post("/v1/rerank", summary="Order documents", openapi_extra=documented(RerankBody, _EXAMPLES))
@needs(TENANT)
async def rerank(
    request: Request,
    service: ServiceState,
    body: Annotated[RerankBody, Depends(parse_body(RerankBody, rules_of(Place.RERANK).sift))],
) -> Response:
    """The documents by the cosine of their embedding and the query's, the nearest first."""
    request_id = f"rerank-{uuid4().hex}"
    documents = [Text(each, "documents") for each in body.documents]
    scores, read = await similarities(
        Reader(service, request, body, request_id), service, body, [Text(body.query, "query")], documents
    )
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
    shown = body.return_documents is not False
    return Json(
        {
            "id": request_id,
            "model": read.model,
            "usage": read.usage,
            "results": [
                {
                    "index": index,
                    "relevance_score": scores[index],
                    **({"document": {"text": body.documents[index]}} if shown else {}),
                }
                for index in ranked
            ],
        },
        headers=model_header(read.model),
    )


async def similarities(
    reader: Reader, service: Service, body: PoolingBody, first: Sequence[Text], second: Sequence[Text]
) -> tuple[list[float], Read]:
    """The cosine of each text of ``second`` with its own of ``first``, or with the only one of it."""
    choose = pooling_for(body, service.pooling, cosines=True)
    read = await reader.pool([*first, *second], choose)
    vectors = [vector / vector.norm().clamp_min(1e-12) for vector in read.vectors]
    own, others = vectors[: len(first)], vectors[len(first) :]
    partners = own * len(others) if len(own) == 1 else own
    return [float(a @ b) for a, b in zip(partners, others, strict=True)], read


def scores_answer(request_id: str, scores: Sequence[float], read: Read) -> Response:
    """An answer of ``/score`` in vLLM's shape."""
    data: list[dict[str, Any]] = [
        {"index": index, "object": "score", "score": score} for index, score in enumerate(scores)
    ]
    return Json(
        {
            "id": request_id,
            "object": "list",
            "created": int(time.time()),
            "model": read.model,
            "data": data,
            "usage": read.usage,
        },
        headers=model_header(read.model),
    )
