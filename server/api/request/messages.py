"""The messages of a conversation: fields, types and bounds, and what the chat template sees of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from manylora.adapters.format.text.chat import join_parts, template_message
from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody, check_size
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.tool_calls import ToolCall, sift_calls
from manylora.server.errors import RequestError


class TextPart(RequestBody):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    return value


class Message(RequestBody):
    """One turn of a conversation. ``developer`` is the newer name of ``system``."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        list[TextPart],
        Field(min_length=1, max_length=limits.MAX_PARTS),
        BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart]),
    ]
    name: str | None = Field(None, min_length=1, max_length=limits.MAX_USER_LENGTH)
    tool_calls: list[ToolCall] | None = Field(None, max_length=limits.MAX_TOOL_CALLS)
    tool_call_id: str | None = Field(None, max_length=limits.MAX_CALL_ID_LENGTH)
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The content as one string; parts are joined by line breaks."""
        return join_parts([part.text for part in self.content])

    def for_template(self) -> dict[str, Any]:
        """What the chat template sees."""
        given = {
            "name": self.name,
            "tool_calls": None if self.tool_calls is None else [c.for_template() for c in self.tool_calls],
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content,
        }
        fields = {name: value for name, value in given.items() if value is not None}
        return template_message(self.role, self.text, **fields)


def sift_messages(value: Any, where: str = "messages") -> Any:
    """The messages of the conversation at ``where`` without the fields that ask for nothing.

    Raises:
        RequestError: a field that is not supported, by its path.
    """
    if not isinstance(check_size(value, limits.MAX_MESSAGES, where), list):
        return value
    return [
        _sift_message(item, f"{where}[{index}]") if isinstance(item, dict) else item
        for index, item in enumerate(value)
    ]


def _sift_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    kept = rules_of(Place.MESSAGE).sift(message, f"{where}.")
    if isinstance(kept.get("content"), list):
        kept["content"] = _sift_parts(kept["content"], f"{where}.content")
    if kept.get("tool_calls") is not None:
        if kept.get("role") != "assistant":
            path = f"{where}.tool_calls"
            raise RequestError(f"'{path}' is not supported here: only the assistant calls tools", path)
        kept["tool_calls"] = sift_calls(kept["tool_calls"], f"{where}.tool_calls")
        if kept.get("content") is None or kept["content"] == []:
            kept["content"] = ""
    if kept.get("role") == "tool" and kept.get("tool_call_id") is None:
        path = f"{where}.tool_call_id"
        raise RequestError(f"'{path}' is required: it says which call this is the result of", path)
    if kept.get("role") != "tool" and kept.get("tool_call_id") is not None:
        path = f"{where}.tool_call_id"
        raise RequestError(f"'{path}' goes with the role 'tool'", path)
    return kept


def _sift_parts(parts: list[Any], where: str) -> list[Any]:
    rules = rules_of(Place.PART)
    return [
        rules.sift(part, f"{where}[{index}].") if isinstance(part, dict) else part
        for index, part in enumerate(check_size(parts, limits.MAX_PARTS, where))
    ]


Messages = Annotated[
    list[Message],
    Field(min_length=1, max_length=limits.MAX_MESSAGES),
    BeforeValidator(sift_messages, json_schema_input_type=list[Message]),
]
