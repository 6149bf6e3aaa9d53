"""How request bytes become a validated model: JSON, then unsupported parameters, then the schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from manylora.server.api.http.limits import MAX_FIELDS
from manylora.server.errors import RequestError


class RequestBody(BaseModel):
    """Base of every request schema: exact types, unknown fields refused.

    ``unsupported`` names fields that exist in the APIs we are compatible with but do nothing here.
    They are refused by name, except with ``null`` or one of the listed values, which ask for what is
    done anyway.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, values: Any) -> Any:
        """Refuse an object with very many fields, before each unknown one makes an error to report."""
        if isinstance(values, dict) and len(values) > MAX_FIELDS:
            raise RequestError(f"An object of the request has {len(values)} fields; {MAX_FIELDS} are allowed")
        return values


Body = TypeVar("Body", bound=RequestBody)

_NON_FINITE = re.compile(rb"NaN|Infinity|\d[eE]\+?\d{3}")


def parse_body(model: type[Body], *, optional: bool = False) -> Callable[[Request], Awaitable[Body]]:
    """A route dependency that reads, parses and validates the body as ``model``.

    The content type is not looked at: everything here is JSON. An ``optional`` body may be empty.

    Raises:
        RequestError: not JSON, not an object, or an unsupported parameter.
        pydantic.ValidationError: everything the schema refuses.
    """

    async def dependency(request: Request) -> Body:
        content = await request.body()
        values = {} if optional and not content else parse_json(content)
        if not isinstance(values, dict):
            raise RequestError("The request body must be a JSON object")
        return model.model_validate(drop_unsupported(values, model.unsupported))

    return dependency


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


def drop_unsupported(
    values: dict[str, Any], unsupported: Mapping[str, tuple[Any, ...]], where: str = ""
) -> dict[str, Any]:
    """``values`` without the unsupported fields that ask for nothing; ``where`` prefixes names in errors.

    Raises:
        RequestError: a field asks for something that is not supported, naming it.
    """
    for name in unsupported.keys() & values.keys():
        value = values[name]
        if value is not None and not any(_same(value, inert) for inert in unsupported[name]):
            path = f"{where}{name}"
            raise RequestError(f"'{path}' is not supported by this server", path, "unsupported_parameter")
    return {name: value for name, value in values.items() if name not in unsupported}


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


def _same(value: Any, inert: Any) -> bool:
    return type(value) is type(inert) and bool(value == inert)
