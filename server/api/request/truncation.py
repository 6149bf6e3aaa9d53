"""How texts and prompts are cut to a number of tokens: vLLM's two fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from manylora.server.api.http import limits
from manylora.server.api.http.body import RequestBody
from manylora.server.errors import RequestError

Ids = tuple[int, ...]
Side = Literal["left", "right"]


class TruncatedBody(RequestBody):
    """A body whose texts may be cut."""

    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=limits.MAX_TOKENS,
        description="Tokens that are read; -1: as many as fit, the answer's max_tokens left free.",
    )
    truncation_side: Side | None = Field(
        None,
        description="Where longer texts are cut. Default: right, so that their beginning is read; left if "
        "they are answered, so that their end is.",
    )

    def truncation(self, max_model_len: int, *, side: Side = "right") -> Truncation:
        """What the two fields ask for; ``side`` is cut where they don't say which.

        Raises:
            RequestError: they ask for none, or for more than the context has, or for a side alone.
        """
        keep = self.truncate_prompt_tokens
        if keep is None and self.truncation_side is not None:
            raise RequestError("'truncation_side' goes with 'truncate_prompt_tokens'", "truncation_side")
        if keep == 0 or (keep or 0) > max_model_len:
            raise RequestError(
                f"'truncate_prompt_tokens' must be -1, or from 1 to {max_model_len}", "truncate_prompt_tokens"
            )
        return Truncation(keep, (self.truncation_side or side) == "left")


@dataclass(frozen=True, slots=True)
class Truncation:
    """How many tokens are kept."""

    keep: int | None = None  # None: all; -1: as many as fit
    end: bool = False  # the last ones rather than the first

    def cut(self, ids: Ids, most: int) -> Ids:
        """``ids``, of which at most ``most`` fit, as far as they are kept; all if there is no room at all."""
        keep = most if self.keep == -1 else self.keep
        if keep is None or keep < 1:
            return ids
        return ids[-keep:] if self.end else ids[:keep]
