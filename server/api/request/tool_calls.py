"""Calls of tools in the assistant's turns: fields, types and bounds."""

from __future__ import annotations

from typing import Any, Literal

import orjson
from pydantic import Field

from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.hand_read import each_object
from manylora.server.errors import RequestError

_CALL = rules_of(Place.TOOL_CALL)


class FunctionCall(RequestBody):
    """What is called, and with what."""

    name: str = Field(min_length=1, max_length=limits.MAX_FUNCTION_NAME_LENGTH)
    arguments: dict[str, Any] = Field(
        default_factory=dict, json_schema_extra={"type": ["string", "object"]}, description="JSON."
    )


class ToolCall(RequestBody):
    """One call of a tool."""

    id: str | None = Field(None, max_length=limits.MAX_CALL_ID_LENGTH)
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """What the chat template sees: the arguments are an object, as templates expect them."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        named = {} if self.id is None else {"id": self.id}
        return {**named, "type": self.type, "function": function}


def sift_calls(value: Any, where: str) -> Any:
    """The calls at ``where`` without what asks for nothing, their arguments read as JSON.

    Raises:
        RequestError: naming what is wrong by its path.
    """
    return each_object(value, limits.MAX_TOOL_CALLS, where, _sift_call)


def _sift_call(call: dict[str, Any], where: str) -> dict[str, Any]:
    kept = _CALL.sift(call, f"{where}.")
    function = kept.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        path = f"{where}.function.arguments"
        kept["function"] = {**function, "arguments": _read(function["arguments"], path)}
    return kept


def _read(text: str, path: str) -> dict[str, Any]:
    """The arguments that ``text`` holds; none if it is empty."""
    try:
        value = orjson.loads(text) if text.strip() else {}
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise RequestError(f"'{path}' is not a JSON object", path)
    return value
