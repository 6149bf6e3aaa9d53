"""``POST /v1/embeddings``: texts as vectors, with OpenAI's fields, by any adapter or mix."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal
from uuid import uuid4

import torch
from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from manylora.server.api.access.scopes import TENANT, needs
from manylora.server.api.embed.body import PoolingBody
from manylora.server.api.embed.pooling import pooling_for
from manylora.server.api.embed.reading import Reader, Text
from manylora.server.api.http import limits
from manylora.server.api.http.body import parse_body
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.model_header import model_header
from manylora.server.api.http.openapi import BASE, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.schemas import Texts
from manylora.server.errors import RequestError

router = APIRouter(tags=["embed"])


class EmbeddingsBody(PoolingBody):
    """OpenAI's fields, and how states are pooled."""

    input: Texts
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Default: float. base64 holds little-endian float32 numbers."
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        le=limits.MAX_TOKENS,
        description="Keep so many numbers, the first ones; what was normalized is so again.",
    )


_EXAMPLES = {"With the base": example("With the base", {"model": BASE, "input": ["A cat.", "A small dog."]})}


@router.post("/v1/embeddings", summary="Embed texts", openapi_extra=documented(EmbeddingsBody, _EXAMPLES))
@needs(TENANT)
async def embeddings(
    request: Request,
    service: ServiceState,
    body: Annotated[EmbeddingsBody, Depends(parse_body(EmbeddingsBody, rules_of(Place.EMBEDDINGS).sift))],
) -> Response:
    """A vector for each input: the pooled hidden states behind the last norm."""
    reader = Reader(service, request, body, f"embd-{uuid4().hex}")
    texts = [Text(given, "input") for given in body.input]
    read = await reader.pool(texts, pooling_for(body, service.pooling))
    width = len(read.vectors[0])
    if (body.dimensions or 0) > width:
        raise RequestError(f"'dimensions' must be at most {width}, what this model has", "dimensions")
    vectors = [vector[: body.dimensions] for vector in read.vectors]
    if read.pooling is not None and read.pooling.normalize:
        vectors = [torch.nn.functional.normalize(vector, dim=-1) for vector in vectors]
    return Json(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": _encoded(vector, body.encoding_format)}
                for i, vector in enumerate(vectors)
            ],
            "model": read.model,
            "usage": read.usage,
        },
        headers=model_header(read.model),
    )


def _encoded(vector: torch.Tensor, encoding: str | None) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode("ascii")
    return vector.tolist()
