"""``/v1/fine_tuning/alpha/graders``: try a grader, or check it."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from manylora.adapters.grading.grade import grade
from manylora.adapters.grading.graders import Grader, GraderFault, parse_grader
from manylora.server.api.access.scopes import TENANT, CallerWhose, needs
from manylora.server.api.asking import asker
from manylora.server.api.http.body import RequestBody, parse_body
from manylora.server.api.http.json_response import Json
from manylora.server.api.http.openapi import ADAPTER_OR_BASE, documented, example
from manylora.server.api.http.state import ServiceState
from manylora.server.errors import RequestError

router = APIRouter(prefix="/v1/fine_tuning/alpha/graders", tags=["fine-tuning"])

MAX_SAMPLE: Final = 262_144  # characters

_GRADER = Field(
    description="string_check, text_similarity, score_model, or multi, which computes with the others."
)


class ValidateBody(RequestBody):
    """A grader to check."""

    grader: dict[str, Any] = _GRADER


class RunBody(ValidateBody):
    """A grader, and what it grades."""

    model_sample: str = Field(max_length=MAX_SAMPLE, description="What a model answered.")
    item: dict[str, Any] = Field({}, description="What templates call item.")


_CHECK: dict[str, Any] = {
    "type": "string_check",
    "name": "capital",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "ilike",
}
_JUDGE: dict[str, Any] = {
    "type": "score_model",
    "name": "judge",
    "model": ADAPTER_OR_BASE,
    "input": [{"role": "user", "content": "How friendly is this, from 0 to 1? {{sample.output_text}}"}],
}
_ANSWER = {"model_sample": "It is Paris.", "item": {"answer": "Paris"}}
_RUN = {
    "string": example("A text in the answer", {"grader": _CHECK, **_ANSWER}),
    "judge": example("A model's judgement", {"grader": _JUDGE, **_ANSWER}),
}
_VALIDATE = {"string": example("A text in the answer", {"grader": _CHECK})}


@router.post("/run", summary="Try a grader", openapi_extra=documented(RunBody, _RUN))
@needs(TENANT)
async def run(
    request: Request,
    service: ServiceState,
    whose: CallerWhose,
    body: Annotated[RunBody, Depends(parse_body(RunBody))],
) -> Response:
    """Grade one answer. Judges are asked as the caller may ask them, and count for its limits."""
    ask = asker(request.app, whose.tenant)
    try:
        grader = parse_grader(body.grader)
        found = await grade(grader, body.model_sample, body.item, ask, base=service.model_name)
    except GraderFault as fault:
        raise _told(fault) from None
    return Json(found.as_json())


@router.post("/validate", summary="Check a grader", openapi_extra=documented(ValidateBody, _VALIDATE))
@needs(TENANT)
async def validate(body: Annotated[ValidateBody, Depends(parse_body(ValidateBody))]) -> Response:
    """Say what is wrong with a grader, or show it. No model is asked."""
    checked(body.grader)
    return Json({"grader": body.grader})


def checked(described: Any) -> Grader:
    """The grader that a field ``grader`` describes.

    Raises:
        RequestError: it is malformed, or of a kind that is refused; names the place.
    """
    try:
        return parse_grader(described)
    except GraderFault as fault:
        raise _told(fault) from None


def _told(fault: GraderFault) -> RequestError:
    return RequestError(f"grader.{fault}", f"grader.{fault.param}", "invalid_grader")
