"""The body of ``POST /v1/compare``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, StringConstraints
from pydantic_core import PydanticCustomError

from manylora.server.api.http import limits
from manylora.server.api.http.body import bounded, check_size
from manylora.server.api.request.sampling_body import SamplingBody
from manylora.server.api.request.schemas import (
    AllowSpecialTokens,
    Message,
    Messages,
    Prompts,
    sift_messages,
)
from manylora.server.errors import RequestError

Target = Annotated[str, StringConstraints(min_length=1, max_length=limits.MAX_MODEL_LENGTH)]


def _sift_conversations(value: Any) -> Any:
    if not isinstance(check_size(value, limits.MAX_COMPARE_PROMPTS, "conversations"), list):
        return value
    return [sift_messages(item, f"conversations[{i}]") for i, item in enumerate(value)]


Conversation = Annotated[list[Message], Field(min_length=1, max_length=limits.MAX_MESSAGES)]
Conversations = Annotated[
    list[Conversation],
    Field(min_length=1, max_length=limits.MAX_COMPARE_PROMPTS),
    BeforeValidator(_sift_conversations, json_schema_input_type=list[list[Message]]),
]


def _as_reference(value: Any) -> int | str | tuple[str, ...] | None:
    """An index, a text for every prompt, or one for each."""
    if value is None or isinstance(value, str) or type(value) is int:
        return value
    if isinstance(value, list) and len(value) <= limits.MAX_COMPARE_PROMPTS:
        texts = tuple(text for text in value if isinstance(text, str))
        if len(texts) == len(value):
            return texts
    raise PydanticCustomError("reference", "must be the index of a target, a text, or a list of texts")


Reference = Annotated[
    int | str | tuple[str, ...] | None,
    PlainValidator(_as_reference, json_schema_input_type=int | str | list[str] | None),
]


class CompareBody(SamplingBody):
    """``POST /v1/compare``. Exactly one of ``messages``, ``conversations`` and ``prompt`` is given."""

    targets: Annotated[
        list[Target],
        Field(min_length=2, max_length=limits.MAX_COMPARE_TARGETS),
        bounded(limits.MAX_COMPARE_TARGETS, "targets"),
    ] = Field(description="Model strings: the base model, adapters, revisions, mixes.")
    messages: Messages | None = None
    conversations: Conversations | None = None
    prompt: Prompts | None = None
    add_special_tokens: bool | None = None
    allow_special_tokens: AllowSpecialTokens = None
    reference: Reference = Field(
        None,
        description="What is scored under every target: the answer of the target with this index "
        "(default 0), or a text.",
    )
    max_tokens: int | None = Field(None, ge=0, le=limits.MAX_COMPARE_TOKENS)
    one_by_one: bool | None = Field(
        None, description="Let the targets answer one after another, so that they do not slow each other."
    )
    stream: bool | None = None

    @property
    def size(self) -> int:
        """How many prompts there are."""
        return len(self.conversations or self.prompt or (self.messages,))

    @property
    def baseline(self) -> int:
        """The target that the others are compared with."""
        return self.reference if isinstance(self.reference, int) else 0

    def check(self) -> None:
        """Refuse combinations that make no sense.

        Raises:
            RequestError: naming the parameter to change.
        """
        given = [name for name in ("messages", "conversations", "prompt") if getattr(self, name) is not None]
        if len(given) != 1:
            raise RequestError(
                "give one of 'messages', 'conversations' and 'prompt'", given[-1] if given else "messages"
            )
        if self.size > limits.MAX_COMPARE_PROMPTS:
            raise RequestError(f"'prompt' may hold at most {limits.MAX_COMPARE_PROMPTS} prompts", "prompt")
        if self.add_special_tokens is not None and self.prompt is None:
            raise RequestError("'add_special_tokens' goes with 'prompt'", "add_special_tokens")
        self._check_reference()

    def _check_reference(self) -> None:
        if not 0 <= self.baseline < len(self.targets):
            last = len(self.targets) - 1
            raise RequestError(
                f"'reference' is no index of 'targets', which go from 0 to {last}", "reference"
            )
        if isinstance(self.reference, tuple) and len(self.reference) != self.size:
            raise RequestError(
                f"'reference' has {len(self.reference)} texts for {self.size} prompts", "reference"
            )
        if self.max_tokens == 0 and not isinstance(self.reference, str | tuple):
            raise RequestError("'max_tokens' may be 0 only where 'reference' is a text", "max_tokens")
