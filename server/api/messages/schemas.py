"""The bodies of ``POST /v1/messages`` and ``/v1/messages/count_tokens``, and the chat that they come to."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from manylora.adapters.mix import MAX_ENTRIES
from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody, bounded
from manylora.server.api.messages.turns import ChatMessage, read_system, read_turns
from manylora.server.api.messages.wording import WORDING
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.hand_read import each_object, sifted
from manylora.server.api.request.sampling_body import SamplingBody, StopSequences
from manylora.server.api.request.schemas import AdapterWeight, AllowSpecialTokens, ChatBody
from manylora.server.api.request.tools import ToolName
from manylora.server.errors import RequestError

_MODES: Final = {"auto": "auto", "any": "required", "none": "none"}


class ClientTool(RequestBody):
    """A tool that the answer may call and the client runs."""

    type: Literal["custom"] = "custom"
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """The tool in the form of chat requests."""
        given = {"description": self.description, "strict": self.strict}
        function = {name: value for name, value in given.items() if value is not None}
        return {
            "type": "function",
            "function": {"name": self.name, **function, "parameters": self.input_schema},
        }


def _sift_tool(tool: dict[str, Any], where: str) -> Any:
    if tool.get("type") not in (None, "custom"):
        path = f"{where}.type"
        raise RequestError(
            f"'{path}' is not supported by this server: tools are the client's own", path,
            "unsupported_parameter",
        )  # fmt: skip
    return sifted(tool, Place.MESSAGES_TOOL, where)


class ToolChoice(RequestBody):
    """``tool_choice``."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, max_length=limits.MAX_FUNCTION_NAME_LENGTH)
    disable_parallel_tool_use: bool | None = Field(None, description="true: at most one call.")

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        return sifted(values, Place.MESSAGES_CHOICE, "tool_choice")

    def for_chat(self) -> str | dict[str, Any]:
        """The choice in the form of chat requests.

        Raises:
            RequestError: a tool is asked for without its name, or named without being asked for.
        """
        if (self.type == "tool") != (self.name is not None):
            raise RequestError("'tool_choice.name' goes with the type 'tool'", "tool_choice.name")
        if self.name is not None:
            return {"type": "function", "function": {"name": self.name}}
        return _MODES[self.type]


class Thinking(RequestBody):
    """``thinking``."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1, le=limits.MAX_TOKENS)
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        return sifted(values, Place.THINKING, "thinking")

    def for_chat(self) -> dict[str, Any]:
        """The fields of a chat request that say the same.

        Raises:
            RequestError: a bound for what is not asked for.
        """
        if self.budget_tokens is not None and self.type != "enabled":
            raise RequestError(
                "'thinking.budget_tokens' goes with the type 'enabled'", "thinking.budget_tokens"
            )
        fields: dict[str, Any] = {}
        if self.type != "adaptive":
            fields["chat_template_kwargs"] = {"enable_thinking": self.type == "enabled"}
        if self.budget_tokens is not None:
            fields["thinking_token_budget"] = self.budget_tokens
        if self.display == "omitted":
            fields["include_reasoning"] = False
        return fields


class OutputFormat(RequestBody):
    """``output_config.format``."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        return sifted(values, Place.OUTPUT_FORMAT, "output_config.format")


class OutputConfig(RequestBody):
    """``output_config``."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        return sifted(values, Place.OUTPUT_CONFIG, "output_config")

    def for_chat(self) -> dict[str, Any]:
        """The fields of a chat request that say the same."""
        fields: dict[str, Any] = {}
        if self.format is not None:
            schema = {"name": "answer", "schema": self.format.schema_, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.effort is not None:
            fields["reasoning_effort"] = self.effort
        return fields


class Metadata(RequestBody):
    """``metadata``."""

    user_id: str | None = Field(
        None,
        max_length=limits.MAX_USER_LENGTH,
        description="Your end user's id: always gets the same arm of an alias.",
    )

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        return sifted(values, Place.MESSAGES_METADATA, "metadata")


class CountTokensBody(RequestBody):
    """``POST /v1/messages/count_tokens``: what a model would read."""

    model: str = Field(
        min_length=1,
        max_length=limits.MAX_MODEL_LENGTH,
        description="The base model, an adapter, 'adapter@revision', or a mix such as 'a*0.7+b*0.3'.",
    )
    adapters: Annotated[list[AdapterWeight], bounded(MAX_ENTRIES, "adapters")] | None = Field(
        None, description="The mix as JSON; goes with the base model in 'model'."
    )
    messages: Annotated[
        list[ChatMessage], PlainValidator(read_turns, json_schema_input_type=list[dict[str, Any]])
    ] = Field(description="Turns of text, tool_use, tool_result and thinking.")
    system: (
        Annotated[str, PlainValidator(read_system, json_schema_input_type=str | list[dict[str, Any]])] | None
    ) = None
    tools: (
        Annotated[
            list[ClientTool],
            Field(max_length=limits.MAX_TOOLS),
            BeforeValidator(
                lambda value: each_object(value, limits.MAX_TOOLS, "tools", _sift_tool),
                json_schema_input_type=list[ClientTool],
            ),
        ]
        | None
    ) = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    allow_special_tokens: AllowSpecialTokens = None

    def for_chat(self) -> ChatBody:
        """The chat request that this comes to.

        Raises:
            RequestError: the conversation, the tools or the format are malformed.
        """
        with WORDING.used():
            given = {name: value for name, value in self._chat_fields().items() if value is not None}
            return ChatBody.model_validate(rules_of(Place.CHAT).sift(given))

    def _chat_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "model": self.model,
            "adapters": None if self.adapters is None else [each.model_dump() for each in self.adapters],
            "messages": _with_system(self.system, self.messages),
            "continue_final_message": True if self._continues() else None,
            "tools": None if self.tools is None else [tool.for_chat() for tool in self.tools],
            "allow_special_tokens": self.allow_special_tokens,
        }
        if self.tool_choice is not None:
            fields["tool_choice"] = self.tool_choice.for_chat()
            fields["parallel_tool_calls"] = not self.tool_choice.disable_parallel_tool_use
        for part in (self.thinking, self.output_config):
            fields |= {} if part is None else part.for_chat()
        return fields

    def _continues(self) -> bool:
        """Whether the answer goes on with the last turn."""
        last = self.messages[-1]
        if last["role"] != "assistant":
            return False
        if "tool_calls" in last or not last["content"]:
            raise RequestError(
                "'messages': a last turn of the assistant is gone on with, so it must be text", "messages"
            )
        return True


def _with_system(system: str | None, messages: list[ChatMessage]) -> list[ChatMessage]:
    """The conversation behind what ``system`` says; many templates take only one message of that role."""
    if not system:
        return messages
    first, *rest = messages
    if first["role"] == "system":
        return [{"role": "system", "content": f"{system}\n\n{first['content']}"}, *rest]
    return [{"role": "system", "content": system}, *messages]


class MessagesBody(CountTokensBody, SamplingBody):
    """``POST /v1/messages``."""

    max_tokens: int = Field(
        ge=1, le=limits.MAX_TOKENS, description="Less if the context has no room for as many."
    )
    stop: StopSequences | None = Field(None, alias="stop_sequences")
    stream: bool | None = None
    metadata: Metadata | None = None

    @property
    def end_user(self) -> str | None:
        """Whose request it is, under whichever name that came."""
        named = None if self.metadata is None else self.metadata.user_id
        return super().end_user if named is None else named

    def _chat_fields(self) -> dict[str, Any]:
        shared = self.model_dump(include=set(SamplingBody.model_fields), exclude_unset=True)
        return {
            **shared,
            **super()._chat_fields(),
            "max_completion_tokens": self.max_tokens,
            "stream": self.stream,
        }
