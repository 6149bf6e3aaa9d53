"""The request bodies of the generation endpoints: fields, types and bounds.

``null`` means "as if it were not there" for every optional field, as OpenAI's clients send it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from manylora.adapters.mix import MAX_ENTRIES
from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody, bounded, check_size
from manylora.server.api.request.fields.field import Place
from manylora.server.api.request.fields.table import rules_of
from manylora.server.api.request.messages import Messages
from manylora.server.api.request.template_variables import TemplateVariables


def _as_list(value: Any) -> Any:
    """A string or a list as a list, without empty strings: they stop nothing."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    return [item for item in check_size(value, limits.MAX_STOP, "stop") if item != ""]


Number = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=limits.MAX_TOKENS)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_STOP_LENGTH)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=limits.MAX_STOP),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


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
            return rules_of(Place.STREAM_OPTIONS).sift(values, "stream_options.")
        return values


class SamplingBody(RequestBody):
    """How answers are drawn, and for whom."""

    min_tokens: int | None = Field(None, ge=0, le=limits.MAX_TOKENS)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1, description="0 is greedy.")
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
    best_of: int | None = Field(None, ge=1, le=limits.MAX_N, description="Only equal to n.")
    max_tokens: int | None = Field(None, ge=0, le=limits.MAX_TOKENS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_logprobs: int | None = Field(
        None, ge=0, le=limits.MAX_LOGPROBS, description="Of the prompt's tokens. Not in streams."
    )
    return_token_ids: bool | None = Field(None, description="Add the token ids of prompt and answer.")
    request_id: str | None = Field(
        None,
        min_length=1,
        max_length=limits.MAX_REQUEST_ID_LENGTH,
        pattern=r"^[A-Za-z0-9._:-]+$",
        description="The answer's id is this, behind 'chatcmpl-' or 'cmpl-'.",
    )


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=0, le=limits.MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=limits.MAX_LOGPROBS)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="Go on with the last message instead of answering it."
    )
    chat_template_kwargs: TemplateVariables | None = Field(
        None, description="Variables of the chat template, such as enable_thinking."
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


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

    prompt: Prompts
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=limits.MAX_LOGPROBS)
    add_special_tokens: bool | None = None
