"""The request bodies of the generation endpoints: fields, types and bounds.

``null`` means "as if it were not there" for every optional field, as OpenAI's clients send it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainValidator, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from manylora.adapters.format.text.chat import join_parts, template_message
from manylora.adapters.mix import MAX_ENTRIES
from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody, bounded, check_size, drop_unsupported
from manylora.server.api.request.special_tokens import AllowSpecialTokens


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    return value


Number = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=limits.MAX_TOKENS)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_STOP_LENGTH)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=limits.MAX_STOP),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]

_UNSUPPORTED_EVERYWHERE: Mapping[str, tuple[Any, ...]] = {
    # vLLM's
    "allowed_token_ids": (),
    "bad_words": ([],),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1.0, 1),
    "logits_processors": (),
    "priority": (0,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    # OpenAI's
    "metadata": ({},),
    "moderation": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
}


class AdapterWeight(RequestBody):
    """One entry of ``adapters``: a registered name (with ``@revision`` if wanted) and its weight."""

    name: str = Field(max_length=200)
    weight: Number = 1.0


class StreamOptions(RequestBody):
    """What a stream carries beside the text."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "continuous_usage_stats": (False,),
        "include_obfuscation": (False,),
    }

    include_usage: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return drop_unsupported(values, cls.unsupported, "stream_options.")
        return values


class SamplingBody(RequestBody):
    """How answers are drawn, and for whom."""

    min_tokens: int | None = Field(None, ge=0, le=limits.MAX_TOKENS)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=limits.MAX_TOP_K, description="-1 and 0 are off.")
    min_p: Number | None = Field(None, ge=0, le=1)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    repetition_penalty: Number | None = Field(None, gt=0, le=2)
    logit_bias: Annotated[dict[str, Bias], bounded(limits.MAX_LOGIT_BIAS, "logit_bias")] | None = Field(
        None, description="Token id to bias."
    )
    seed: int | None = Field(None, ge=limits.INT64_MIN, le=limits.INT64_MAX)
    stop: StopStrings | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=limits.MAX_STOP_TOKEN_IDS)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=limits.MAX_SALT_LENGTH,
        description="Requests share cached prompt prefixes only with requests of the same salt.",
    )
    user: str | None = Field(
        None,
        max_length=limits.MAX_USER_LENGTH,
        description="Your end user's id: always gets the same arm of an alias.",
    )
    safety_identifier: str | None = Field(
        None, max_length=limits.MAX_USER_LENGTH, description="The same under OpenAI's newer name."
    )

    @property
    def end_user(self) -> str | None:
        """Whose request it is, under whichever name that came; the newer one counts."""
        return self.user if self.safety_identifier is None else self.safety_identifier


class GenerationBody(SamplingBody):
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
    max_tokens: int | None = Field(None, ge=0, le=limits.MAX_TOKENS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None


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

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart],
        Field(min_length=1, max_length=limits.MAX_PARTS),
        BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart]),
    ]
    name: str | None = Field(None, min_length=1, max_length=limits.MAX_USER_LENGTH)

    @property
    def text(self) -> str:
        """The content as one string; parts are joined by line breaks."""
        return join_parts([part.text for part in self.content])

    def for_template(self) -> dict[str, str]:
        """What the chat template sees."""
        named = {} if self.name is None else {"name": self.name}
        return template_message(self.role, self.text, **named)


# Fields of an answer that clients send back with the history, empty.
_MESSAGE_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning": (),
    "reasoning_content": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
    "weight": (),
}


def drop_from_messages(value: Any, where: str = "messages") -> Any:
    """Drop empty unsupported fields from each message of the conversation at ``where``.

    Raises:
        RequestError: one that is not empty, by its path.
    """
    if not isinstance(check_size(value, limits.MAX_MESSAGES, where), list):
        return value
    return [
        drop_unsupported(item, _MESSAGE_UNSUPPORTED, f"{where}[{i}].") if isinstance(item, dict) else item
        for i, item in enumerate(value)
    ]


Messages = Annotated[
    list[Message],
    Field(min_length=1, max_length=limits.MAX_MESSAGES),
    BeforeValidator(drop_from_messages, json_schema_input_type=list[Message]),
]


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_UNSUPPORTED_EVERYWHERE,
        "audio": (),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none",),
        "functions": ([],),
        "include_reasoning": (),
        "modalities": (["text"],),
        "parallel_tool_calls": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "tool_choice": ("none",),
        "tools": ([],),
        "verbosity": (),
        "web_search_options": (),
    }

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=0, le=limits.MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=limits.MAX_LOGPROBS)
    add_generation_prompt: bool | None = None
    allow_special_tokens: AllowSpecialTokens = None


Prompt = str | tuple[int, ...]


def _as_prompts(value: Any) -> tuple[Prompt, ...]:
    """A string, strings, token ids or lists of token ids -> prompts."""
    if isinstance(value, str) or _is_token_ids(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt", "must be a string, token ids, or a list of those, and not empty")
    if len(value) > limits.MAX_PROMPTS:
        raise PydanticCustomError("prompt", f"must hold at most {limits.MAX_PROMPTS} prompts")
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


class CompletionBody(GenerationBody):
    """``POST /v1/completions``."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {**_UNSUPPORTED_EVERYWHERE, "suffix": ("",)}

    prompt: Prompts
    best_of: int | None = Field(None, ge=1, le=limits.MAX_N, description="Only equal to n.")
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=limits.MAX_LOGPROBS)
    add_special_tokens: bool | None = None
