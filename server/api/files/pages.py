"""OpenAI's lists: a page, and what to ask next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import Response
from pydantic import BaseModel, ConfigDict

from manylora.server.api.http.json_response import Json
from manylora.server.errors import RequestError

T = TypeVar("T")


class Parameters(BaseModel):
    """Base of a route's query parameters: those that are not known are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def page_answer(records: Sequence[T] | None, limit: int, view: Callable[[T], dict[str, Any]]) -> Response:
    """The first ``limit`` of ``records``, of which one more was asked for.

    Raises:
        RequestError: there are none because there is nothing of the id that they were to follow.
    """
    if records is None:
        raise RequestError("'after' is no id of this list", "after")
    data = [view(record) for record in records[:limit]]
    return Json(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(records) > limit,
        }
    )
