"""What a request takes of limits, and the limits that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from manylora.adapters.registry.tenants.records import TenantLimits

MINUTE: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request takes of its tenant's limits."""

    prompt: int  # tokens
    completion: int  # tokens
    requests: int = 1

    @property
    def tokens(self) -> int:
        """Of prompt and answer."""
        return self.prompt + self.completion


NOTHING: Final = Cost(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Window:
    """One limit of a minute: how headers call it, and what a cost takes of it."""

    name: str
    limit: int
    of: Callable[[Cost], int]

    @property
    def words(self) -> str:
        """How messages call it."""
        return self.name.replace("-", " ")


def windows(limits: TenantLimits) -> Iterator[Window]:
    """The limits of a minute that are set."""
    if limits.requests_per_minute is not None:
        yield Window("requests", limits.requests_per_minute, lambda cost: cost.requests)
    if limits.tokens_per_minute is not None:
        yield Window("tokens", limits.tokens_per_minute, lambda cost: cost.tokens)
    if limits.prompt_tokens_per_minute is not None:
        yield Window("prompt-tokens", limits.prompt_tokens_per_minute, lambda cost: cost.prompt)
    if limits.completion_tokens_per_minute is not None:
        yield Window("completion-tokens", limits.completion_tokens_per_minute, lambda cost: cost.completion)
