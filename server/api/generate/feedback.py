"""``POST /v1/feedback``: how good an answer was."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import Field

from manylora.server.api.access.scopes import TENANT, needs
from manylora.server.api.access.views import CallerView, shown_target
from manylora.server.api.http.body import RequestBody, parse_body
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.limits import MAX_RESPONSE_ID_LENGTH
from manylora.server.api.http.openapi import documented, example
from manylora.server.api.http.state import ServiceState

router = APIRouter(prefix="/v1/feedback", tags=["generate"])


class FeedbackBody(RequestBody):
    """A user's score for one answer."""

    response_id: str = Field(
        min_length=1, max_length=MAX_RESPONSE_ID_LENGTH, description="The 'id' of the answer."
    )
    score: float = Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="0 is worst and 1 best: thumbs are 0 and 1, k of n stars are (k-1)/(n-1).",
    )


_THUMBS_UP = example("Thumbs up", {"response_id": "chatcmpl-…", "score": 1})


@router.post("", summary="Score an answer", openapi_extra=documented(FeedbackBody, {"thumb": _THUMBS_UP}))
@needs(TENANT)
async def give_feedback(
    service: ServiceState,
    view: CallerView,
    body: Annotated[FeedbackBody, Depends(parse_body(FeedbackBody))],
) -> Response:
    """Count a score for the adapter that answered, and for the arm if an alias was asked for.

    A second score for the same answer replaces the first.
    """
    owner = "" if view is None else view.tenant.id
    found = service.adapters.experiments.score(body.response_id, body.score, owner)
    alias, arm = (None, None) if found.arm is None else found.arm
    if view is not None and alias is not None and arm is not None:
        alias, arm = view.shown(alias), shown_target(arm, service.model_name, view)
    return Json(
        {
            "object": "feedback",
            "response_id": body.response_id,
            "score": body.score,
            "previous_score": found.previous,
            "model": found.model,
            "alias": alias,
            "arm": arm,
        }
    )
