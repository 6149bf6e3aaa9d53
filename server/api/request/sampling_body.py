"""The fields of a body that say how answers are drawn, and where they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody, bounded, check_size


def _stop_list(name: str) -> Callable[[Any], Any]:
    """What reads the field ``name``: a string or strings as a list, without empty ones: they stop nothing."""

    def read(value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            raise PydanticCustomError("stop", "must be a string or a list of strings")
        return [item for item in check_size(value, limits.MAX_STOP, name) if item != ""]

    return read


Number = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=limits.MAX_TOKENS)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_STOP_LENGTH)]
StopList = Annotated[list[StopString], Field(max_length=limits.MAX_STOP)]
StopStrings = Annotated[StopList, BeforeValidator(_stop_list("stop"), json_schema_input_type=str | list[str])]
StopSequences = Annotated[
    StopList, BeforeValidator(_stop_list("stop_sequences"), json_schema_input_type=list[str])
]
BadWord = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_BAD_WORD_LENGTH)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


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
    allowed_token_ids: (
        Annotated[list[TokenId], Field(min_length=1), bounded(limits.MAX_ALLOWED_TOKENS, "allowed_token_ids")]
        | None
    ) = Field(None, description="The only tokens that may be drawn.")
    bad_words: Annotated[list[BadWord], bounded(limits.MAX_BAD_WORDS, "bad_words")] | None = Field(
        None, description="Words that answers don't contain, neither at a beginning nor behind a blank."
    )
    seed: int | None = Field(None, ge=limits.INT64_MIN, le=limits.INT64_MAX)
    stop: StopStrings | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=limits.MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool | None = Field(
        None, description="What ends an answer, a stop string or a stop token, is part of its text."
    )
    no_stop_trim: bool | None = Field(None, description="The same under SGLang's name.")
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = Field(
        None, description="false: added tokens that are not skipped follow each other without blanks."
    )
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
    def keeps_stop(self) -> bool:
        """Whether what ends an answer is part of its text."""
        return bool(self.include_stop_str_in_output or self.no_stop_trim)

    @property
    def end_user(self) -> str | None:
        """Whose request it is, under whichever name that came; the newer one counts."""
        return self.user if self.safety_identifier is None else self.safety_identifier
