"""The request bodies of the generation endpoints: fields, types and bounds.

``null`` means "as if it were not there" for every optional field, as OpenAI's clients send it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BeforeValidator, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from manylora.adapters.format.text.chat import join_parts, template_message
from manylora.adapters.mix import MAX_ENTRIES
from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody, bounded
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.hand_read import each_object, unsupported_kind
from manylora.server.api.request.sampling_body import Number, SamplingBody
from manylora.server.api.request.structured_output import StructuredBody
from manylora.server.api.request.template_variables import TemplateVariables
from manylora.server.api.request.tool_calls import ToolCall, sift_calls
from manylora.server.api.request.tools import ToolsBody
from manylora.server.api.request.truncation import TruncatedBody
from manylora.server.errors import RequestError

_MESSAGE, _PART, _STREAM_OPTIONS = map(rules_of, (Place.MESSAGE, Place.PART, Place.STREAM_OPTIONS))


class AdapterWeight(RequestBody):
    """One entry of ``adapters``: a registered name (with ``@revision`` if wanted) and its weight."""

    name: str = Field(max_length=200)
    weight: Number = 1.0


class StreamOptions(RequestBody):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _sift(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return _STREAM_OPTIONS.sift(values, "stream_options.")
        return values


AllowSpecialTokens = Annotated[
    bool | None,
    Field(
        description="Whether control tokens that messages spell out (<|im_end|>) are recognized as such. "
        "With true this takes an admin key. Default: as the server is configured; only with messages."
    ),
]


class GenerationBody(SamplingBody, StructuredBody, TruncatedBody):
    """Fields that chat and plain completions share."""

    model: str = Field(
        min_length=1,
        max_length=limits.MAX_MODEL_LENGTH,
        description="The base model, an adapter, 'adapter@revision', or a mix such as 'a*0.7+b*0.3'.",
    )
    adapters: Annotated[list[AdapterWeight], bounded(MAX_ENTRIES, "adapters")] | None = Field(
        None, description="The mix as JSON; goes with the base model in 'model'."
    )
    n: int | None = Field(None, ge=1, le=limits.MAX_N)
    best_of: int | None = Field(None, ge=1, le=limits.MAX_N, description="Only equal to n.")
    max_tokens: int | None = Field(None, ge=0, le=limits.MAX_TOKENS)
    priority: int | None = Field(
        None,
        ge=-limits.MAX_PRIORITY,
        le=limits.MAX_PRIORITY,
        description="Whose turn it is among a tenant's requests that wait: the lower, the earlier.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_logprobs: int | None = Field(
        None, ge=0, le=limits.MAX_LOGPROBS, description="Of the prompt's tokens. Not in streams."
    )
    return_tokens_as_token_ids: bool | None = Field(
        None, description="Log-probabilities name tokens 'token_id:17' instead of by their text."
    )
    return_token_ids: bool | None = Field(None, description="Add the token ids of prompt and answer.")
    request_id: str | None = Field(
        None,
        min_length=1,
        max_length=limits.MAX_REQUEST_ID_LENGTH,
        pattern=r"^[A-Za-z0-9._:-]+$",
        description="The answer's id is this, behind 'chatcmpl-' or 'cmpl-'.",
    )

    def answer_id(self, prefix: str) -> str:
        """The answer's id, such as ``chatcmpl-1b9d…``: the client's own behind ``prefix``, or a new one."""
        return f"{prefix}-{uuid4().hex if self.request_id is None else self.request_id}"


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
    reasoning: str | None = Field(None, description="The same under vLLM's newer name.")

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
            "reasoning_content": self.reasoning if self.reasoning_content is None else self.reasoning_content,
        }
        fields = {name: value for name, value in given.items() if value is not None}
        return template_message(self.role, self.text, **fields)


def sift_messages(value: Any, where: str = "messages") -> Any:
    """The messages of the conversation at ``where`` without the fields that ask for nothing.

    Raises:
        RequestError: a field that is not supported, by its path.
    """
    return each_object(value, limits.MAX_MESSAGES, where, _sift_message)


def _sift_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    kept = _MESSAGE.sift(message, f"{where}.")
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


def _sift_parts(parts: list[Any], where: str) -> Any:
    return each_object(parts, limits.MAX_PARTS, where, _sift_part)


def _sift_part(part: dict[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    if isinstance(kind, str) and kind != "text":
        raise unsupported_kind(kind, where, "parts are text ('text')")
    return _PART.sift(part, f"{where}.")


Messages = Annotated[
    list[Message],
    Field(min_length=1, max_length=limits.MAX_MESSAGES),
    BeforeValidator(sift_messages, json_schema_input_type=list[Message]),
]


_SHAPING = frozenset((*StructuredBody.model_fields, *ToolsBody.model_fields, "thinking_token_budget"))


class ChatBody(GenerationBody, ToolsBody):
    """``POST /v1/chat/completions``."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=0, le=limits.MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=limits.MAX_LOGPROBS)
    add_generation_prompt: bool | None = None
    allow_special_tokens: AllowSpecialTokens = None
    continue_final_message: bool | None = Field(
        None, description="Go on with the last message instead of answering it."
    )
    chat_template_kwargs: TemplateVariables | None = Field(
        None, description="Variables of the chat template, such as enable_thinking."
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    include_reasoning: bool | None = None
    separate_reasoning: bool | None = None
    reasoning_format: Literal["none", "auto", "deepseek"] | None = None
    thinking_token_budget: int | None = Field(
        None, ge=0, le=limits.MAX_TOKENS, description="Tokens after which a block of reasoning is closed."
    )

    @property
    def is_plain(self) -> bool:
        """Whether it asks for text of any shape: for no grammar, no tool and no bound on reasoning."""
        return self.model_fields_set.isdisjoint(_SHAPING)


Prompt = str | tuple[int, ...]


def _as_prompts(value: Any, limit: int = limits.MAX_PROMPTS) -> tuple[Prompt, ...]:
    """A string, strings, token ids or lists of token ids -> prompts."""
    if isinstance(value, str) or _is_token_ids(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt", "must be a string, token ids, or a list of those, and not empty")
    if len(value) > limit:
        raise PydanticCustomError("prompt", f"must hold at most {limit} prompts")
    if all(isinstance(prompt, str) for prompt in value):
        return tuple(value)
    if all(_is_token_ids(prompt) for prompt in value):
        return tuple(tuple(prompt) for prompt in value)
    raise PydanticCustomError("prompt", "must hold only strings, only token ids, or only lists of token ids")


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


Prompts = Annotated[
    tuple[Prompt, ...],
    PlainValidator(_as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
Texts = Annotated[
    tuple[Prompt, ...],
    PlainValidator(
        lambda value: _as_prompts(value, limits.MAX_TEXTS),
        json_schema_input_type=str | list[str] | list[int] | list[list[int]],
    ),
]


def _as_document(value: Any) -> str:
    """A string, or an object with it as its only field, ``text``."""
    text = value["text"] if isinstance(value, dict) and value.keys() == {"text"} else value
    if not isinstance(text, str):
        raise PydanticCustomError("document", "must be a string, or an object with 'text'")
    return text


Document = Annotated[str, PlainValidator(_as_document, json_schema_input_type=str | dict[str, str])]


class CompletionBody(GenerationBody):
    """``POST /v1/completions``."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=limits.MAX_LOGPROBS)
    add_special_tokens: bool | None = None
