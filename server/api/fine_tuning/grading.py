"""The grader that a job names: checked when the job is made, used when its model is published."""

from __future__ import annotations

from manylora.adapters.errors import AdapterError
from manylora.adapters.grading.graders import Grader, MultiGrader, ScoreModel
from manylora.adapters.mix import parse_mix
from manylora.server.api.fine_tuning.body import JobBody
from manylora.server.api.fine_tuning.graders import checked
from manylora.server.errors import RequestError
from manylora.server.service import Service
from manylora.server.tenants.view import TenantView

GRADED_ROWS = 8  # where a job with a grader does not say how many


def rows_to_sample(body: JobBody) -> int:
    """How many rows are answered: with a grader some, unless it is said."""
    if body.samples is None:
        return 0 if body.grader is None else GRADED_ROWS
    return body.samples


async def check_grader(service: Service, body: JobBody, view: TenantView | None) -> None:
    """Refuse a grader that can't be used.

    Raises:
        RequestError: it is malformed or refused, there is nothing that it grades, or a judge is not there
            for who makes the job; names the place.
    """
    if body.grader is None:
        return
    grader = checked(body.grader)
    if body.task is not None:
        raise RequestError("'grader' grades answers, which this 'task' does not learn", "grader")
    if not rows_to_sample(body):
        raise RequestError("'samples' are what the grader grades: at least 1", "samples")
    for place, model in _judges(grader):
        if not await _is_there(service, model, view):
            message = f"grader.{place}: The model '{model[:200]}' does not exist"
            raise RequestError(message, f"grader.{place}", "invalid_grader")


def _judges(grader: Grader) -> list[tuple[str, str]]:
    """Where judges are named, and their names."""
    if isinstance(grader, MultiGrader):
        return [
            (f"graders.{name}.model", each.model)
            for name, each in grader.graders.items()
            if isinstance(each, ScoreModel)
        ]
    return [("model", grader.model)] if isinstance(grader, ScoreModel) else []


async def _is_there(service: Service, model: str, view: TenantView | None) -> bool:
    resolver = service.adapters.resolver
    try:
        terms = () if model == service.model_name else parse_mix(model)
        await service.adapters.admin.catch_up()
        resolver.digests(terms if view is None else resolver.visible_terms(terms, view))
    except AdapterError:
        return False
    return True
