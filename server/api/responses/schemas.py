"""The body of ``POST /v1/responses``, and the chat request that it comes to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from manylora.adapters.mix import MAX_ENTRIES
from manylora.server.api.http import limits
from manylora.server.api.http.body import Metadata, RequestBody, bounded
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.hand_read import each_object, sifted, unsupported_kind
from manylora.server.api.request.sampling_body import SamplingBody
from manylora.server.api.request.schemas import AdapterWeight, AllowSpecialTokens, ChatBody
from manylora.server.api.request.tools import ToolName
from manylora.server.api.responses.input_items import messages_of, read_input
from manylora.server.errors import RequestError
from manylora.server.responses.stored import Item

_LOGPROBS = "message.output_text.logprobs"


class Reasoning(RequestBody):
    """``reasoning``."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        return sifted(values, Place.REASONING, "reasoning")


class TextFormat(RequestBody):
    """``text.format``: any text, JSON, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = Field(
        None, description="false: keywords that answers can't be held to are left out instead of refused."
    )

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        return sifted(values, Place.TEXT_FORMAT, "text.format")

    def for_chat(self) -> dict[str, Any]:
        """``response_format`` of a chat request."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"schema": self.schema_, "strict": self.strict}}


class Text(RequestBody):
    """``text``."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        return sifted(values, Place.TEXT, "text")


class FunctionTool(RequestBody):
    """A function that the answer may call."""

    type: Literal["function"] = "function"
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """The tool in the form of chat requests."""
        given = self.model_dump(exclude={"type"}, exclude_none=True)
        return {"type": "function", "function": given}


def _sift_tools(value: Any) -> Any:
    return each_object(value, limits.MAX_TOOLS, "tools", _sift_tool)


def _sift_tool(tool: dict[str, Any], where: str) -> Any:
    if tool.get("type", "function") != "function":
        raise unsupported_kind(tool["type"], where, "tools are functions")
    return sifted(tool, Place.ITEM_TOOL, where)


def _tool_choice(value: Any) -> Any:
    """The choice as chats spell it: they name a function one level deeper."""
    if not isinstance(value, dict):
        return value
    if value.get("type") == "function" and set(value) == {"type", "name"}:
        return {"type": "function", "function": {"name": value["name"]}}
    if value.get("type") == "allowed_tools" and set(value) == {"type", "mode", "tools"}:
        tools = value["tools"]
        given = [_tool_choice(tool) for tool in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": value["mode"], "tools": given}}
    raise RequestError(
        '\'tool_choice\' must be "none", "auto", "required", a function by its name, or allowed tools',
        "tool_choice",
    )


class ResponsesBody(SamplingBody):
    """``POST /v1/responses``."""

    model: str = Field(
        min_length=1,
        max_length=limits.MAX_MODEL_LENGTH,
        description="The base model, an adapter, 'adapter@revision', or a mix such as 'a*0.7+b*0.3'.",
    )
    adapters: Annotated[list[AdapterWeight], bounded(MAX_ENTRIES, "adapters")] | None = Field(
        None, description="The mix as JSON; goes with the base model in 'model'."
    )
    input: Annotated[
        list[Item], PlainValidator(read_input, json_schema_input_type=str | list[dict[str, Any]])
    ] = Field(description="A text, or items: messages, calls of functions, their results, reasoning.")
    instructions: str | None = None
    previous_response_id: str | None = Field(None, min_length=1, max_length=limits.MAX_RESPONSE_ID_LENGTH)
    store: bool | None = Field(None, description="false: nothing is kept.")
    background: bool | None = Field(None, description="true: answered while nobody waits.")
    stream: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=limits.MAX_TOKENS)
    truncation: Literal["auto", "disabled"] | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    tools: (
        Annotated[
            list[FunctionTool],
            Field(max_length=limits.MAX_TOOLS),
            BeforeValidator(_sift_tools, json_schema_input_type=list[FunctionTool]),
        ]
        | None
    ) = None
    tool_choice: Any = Field(None, description="'none', 'auto', 'required', a function, or allowed tools.")
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=limits.MAX_LOGPROBS)
    include: list[Annotated[str, Field(max_length=limits.MAX_TAG_LENGTH)]] | None = Field(
        None, max_length=limits.MAX_PARTS, description=f"{_LOGPROBS}: log probabilities of the text."
    )
    metadata: Metadata | None = None
    allow_special_tokens: AllowSpecialTokens = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer's text carries log probabilities."""
        return bool(self.top_logprobs) or _LOGPROBS in (self.include or ())

    def for_chat(self, before: list[Item]) -> ChatBody:
        """The chat request that this comes to after the items ``before``.

        Raises:
            RequestError, pydantic.ValidationError: in the words of chat requests.
        """
        shared = self.model_dump(include=set(SamplingBody.model_fields), exclude_unset=True)
        text = Text() if self.text is None else self.text
        values = {
            **shared,
            "model": self.model,
            "adapters": None if self.adapters is None else [each.model_dump() for each in self.adapters],
            "messages": messages_of(self.instructions, [*before, *self.input]),
            "max_completion_tokens": self.max_output_tokens,
            "stream": self.stream,
            "response_format": None if text.format is None else text.format.for_chat(),
            "verbosity": text.verbosity,
            "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
            "tools": None if self.tools is None else [tool.for_chat() for tool in self.tools],
            "tool_choice": _tool_choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "logprobs": True if self.wants_logprobs else None,
            "top_logprobs": self.top_logprobs if self.wants_logprobs else None,
            "allow_special_tokens": self.allow_special_tokens,
        }
        given = {name: value for name, value in values.items() if value is not None}
        return ChatBody.model_validate(rules_of(Place.CHAT).sift(given))
