"""Instructor: objects by schema, by a tool and as a stream. Arguments: the base URL, a model and a mix."""

from __future__ import annotations

import sys
from typing import Literal

import instructor
from openai import NotFoundError, OpenAI
from pydantic import BaseModel, ConfigDict


class Trip(BaseModel):
    """A journey."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Oslo", "Rome"]
    by_train: bool


def main(url: str, *models: str) -> None:
    """Ask the server at ``url``."""
    plain = OpenAI(base_url=url, api_key="none")
    messages = [{"role": "user", "content": "Where to?"}]
    for mode in (instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(plain, mode=mode)
        extra = {"parallel_tool_calls": False} if mode is instructor.Mode.TOOLS_STRICT else {}
        for model in models:
            asked = {"model": model, "messages": messages, "max_tokens": 3000, "temperature": 0}
            trip = client.chat.completions.create(response_model=Trip, max_retries=0, **asked, **extra)
            assert isinstance(trip, Trip)
    parts = client.chat.completions.create_partial(
        response_model=Trip, model=models[0], messages=messages, max_tokens=3000, temperature=0
    )
    *_, last = parts
    assert last.city in ("Oslo", "Rome")
    try:
        plain.chat.completions.create(model="nobody", messages=messages)
        raised = None
    except NotFoundError as error:
        raised = error
    assert raised is not None
    assert raised.code == "model_not_found"


if __name__ == "__main__":
    main(*sys.argv[1:])
