"""What the bodies of the routes that read texts have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from manylora.adapters.mix import MAX_ENTRIES
from manylora.server.api.http import limits
from manylora.server.api.http.body import bounded
from manylora.server.api.request.schemas import AdapterWeight, AllowSpecialTokens
from manylora.server.api.request.truncation import TruncatedBody


class ReadingBody(TruncatedBody):
    """Which adapter or mix reads, and how."""

    model: str = Field(
        min_length=1,
        max_length=limits.MAX_MODEL_LENGTH,
        description="The base, an adapter, 'adapter@revision' or a mix.",
    )
    adapters: Annotated[list[AdapterWeight], bounded(MAX_ENTRIES, "adapters")] | None = Field(
        None, description="The mix as JSON; goes with the base model in 'model'."
    )
    add_special_tokens: bool | None = Field(None, description="Default: true, as the tokenizer adds them.")
    allow_special_tokens: AllowSpecialTokens = None
    cache_salt: str | None = Field(None, min_length=1, max_length=limits.MAX_SALT_LENGTH)
    user: str | None = Field(
        None,
        max_length=limits.MAX_USER_LENGTH,
        description="Your end user's id: always gets the same arm of an alias.",
    )


class PoolingBody(ReadingBody):
    """How hidden states become one vector; by default as the adapter's files say, else the base's."""

    pooling: Literal["last", "mean"] | None = Field(
        None,
        description="The state of the last token, or the mean of all. Default: as the adapter's "
        "files say, else the base's, else last.",
    )
    normalize: bool | None = Field(None, description="To length 1. Default: as with pooling, else true.")
