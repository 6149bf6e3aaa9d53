"""How request bytes become a validated model: JSON, then the table of fields, then the schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from manylora.server.api.http.limits import (
    MAX_FIELDS,
    MAX_METADATA,
    MAX_METADATA_KEY,
    MAX_METADATA_VALUE,
    MAX_NAME_SHOWN,
)
from manylora.server.api.http.state import ignored_fields, service_of
from manylora.server.errors import RequestError


class RequestBody(BaseModel):
    """Base of every request schema: exact types, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, values: Any) -> Any:
        """Refuse an object with very many fields, before each unknown one makes an error to report."""
        if isinstance(values, dict) and len(values) > MAX_FIELDS:
            raise RequestError(f"An object of the request has {len(values)} fields; {MAX_FIELDS} are allowed")
        return values


Body = TypeVar("Body", bound=RequestBody)

_NON_FINITE = re.compile(rb"NaN|Infinity|\d[eE]\+?\d{3}")


Sift = Callable[[dict[str, Any]], dict[str, Any]]


def _everything(values: dict[str, Any]) -> dict[str, Any]:
    return values


def parse_body(
    model: type[Body], sift: Sift = _everything, *, optional: bool = False
) -> Callable[[Request], Awaitable[Body]]:
    """A route dependency that reads, parses and validates the body as ``model``.

    The content type is not looked at: everything here is JSON.

    Args:
        model: the schema.
        sift: leaves out fields that the schema does not have to read, and refuses some by name.
        optional: whether the body may be empty.

    Raises:
        RequestError: not JSON, not an object, or a field that is refused by name.
        pydantic.ValidationError: everything the schema refuses.
    """

    async def dependency(request: Request) -> Body:
        content = await request.body()
        values = {} if optional and not content else parse_json(content)
        if not isinstance(values, dict):
            raise RequestError("The request body must be a JSON object")
        ignores = service_of(request).config.unknown_fields == "ignore"
        return _validate(model, sift(values), ignored_fields(request) if ignores else None)

    return dependency


def _validate(model: type[Body], values: dict[str, Any], ignored: list[str] | None) -> Body:
    """``values`` as ``model``. With ``ignored`` unknown fields are taken out of them, and named there."""
    while True:
        try:
            return model.model_validate(values)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False)
            unknown = [fault["loc"] for fault in faults if fault["type"] == "extra_forbidden"]
            if ignored is None or not unknown:
                raise
            for location in unknown:
                _take_out(values, location)
                ignored.append(path_of(location))


def _take_out(values: Any, location: tuple[int | str, ...]) -> None:
    """Remove the field at ``location``, in place."""
    *steps, name = location
    for step in steps:
        values = values[step]
    del values[name]


def path_of(location: tuple[int | str, ...]) -> str:
    """``("messages", 0, "role")`` -> ``messages[0].role``."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            name = step[:MAX_NAME_SHOWN]
            path += f".{name}" if path else name
    return path


def parse_json(body: bytes) -> Any:
    """Parse strict JSON.

    Raises:
        RequestError: empty, malformed or not UTF-8; NaN and Infinity are refused naming their field.
    """
    if not body:
        raise RequestError("The request body is empty; a JSON object is expected", code="invalid_json")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        param = _field_of_non_finite(body)
        if param is not None:
            raise RequestError(f"{param}: must be a finite number", param) from None
        raise RequestError(f"The request body is not valid JSON: {error}", code="invalid_json") from None


def _field_of_non_finite(body: bytes) -> str | None:
    """The path of a field that is NaN or Infinity, if that is all that is wrong with ``body``."""
    if not _NON_FINITE.search(body):
        return None
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    return next(_paths_of_non_finite(values), None)


def _paths_of_non_finite(values: dict[str, Any]) -> Iterator[str]:
    pending: list[tuple[str, Any]] = [*values.items()][::-1]
    while pending:
        path, item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            yield path
        if isinstance(item, list):
            pending.extend((f"{path}[{index}]", each) for index, each in enumerate(item))
        elif isinstance(item, dict):
            pending.extend((f"{path}.{key}", each) for key, each in item.items())


def check_size(value: Any, limit: int, name: str) -> Any:
    """Return ``value``, unless it is a list or object of more than ``limit`` items.

    The schema has the same bounds, but some are looked at only after every item has been, and every
    bad item makes an error to report: with millions of them that takes many seconds.

    Raises:
        RequestError: naming the parameter.
    """
    if isinstance(value, list | dict) and len(value) > limit:
        raise RequestError(f"'{name}' may hold at most {limit} items, not {len(value)}", name)
    return value


def bounded(limit: int, name: str) -> BeforeValidator:
    """A field's validator that applies :func:`check_size` before any item is looked at."""
    return BeforeValidator(lambda value: check_size(value, limit, name))


Metadata = Annotated[  # words of a client's own about an object, as OpenAI bounds them
    dict[
        Annotated[str, Field(max_length=MAX_METADATA_KEY)],
        Annotated[str, Field(max_length=MAX_METADATA_VALUE)],
    ],
    bounded(MAX_METADATA, "metadata"),
]
