"""What the registry knows of tenants and keys: immutable facts, as they were when read."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Final

from manylora.adapters.mix import MAX_NAME

PODS: Final = "pods"  # no tenant's name: what begins with it and "/" is one server's alone
MAX_PATTERNS: Final = 256  # of one tenant
KEY_PATTERN: Final = r"ml-[A-Za-z0-9_-]{43}"  # what every key looks like, so that logs can leave it out

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHOWN = 10  # characters of a key by which people know it


@dataclass(frozen=True)
class TenantLimits:
    """What a tenant may take, or it may with one adapter; None: as much as there is. All are at least 1."""

    max_concurrent_requests: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and answers
    prompt_tokens_per_minute: int | None = None
    completion_tokens_per_minute: int | None = None
    monthly_tokens: int | None = None  # of prompts and answers, in a month of UTC
    adapter_bytes: int | None = None  # of its own adapters with all their revisions, as they are stored
    file_bytes: int | None = None  # of its files, and of uploads that are open


NO_LIMITS: Final = TenantLimits()


@dataclass(frozen=True)
class TenantSettings:
    """What a tenant may use."""

    adapters: tuple[str, ...] = ()  # names, and patterns in which "*" stands for any characters
    base: bool = True  # whether it may ask for the base model itself
    metadata: Mapping[str, str] = field(default_factory=dict)  # the operator's own notes
    limits: TenantLimits = NO_LIMITS
    weight: float = 1.0  # its share of the engine while others want it too, relative to theirs
    adapter_limits: Mapping[str, TenantLimits] = field(default_factory=dict)  # by registry's name, or pattern
    default_adapter: str | None = None  # a model string, by its own names, in place of the base model


@dataclass(frozen=True)
class TenantRecord:
    """Someone who shares the server. What a tenant keeps there has its ``id``, which is never used again."""

    id: str
    name: str
    created: float  # unix seconds
    settings: TenantSettings

    @property
    def namespace(self) -> str:
        """What the names of its own adapters and aliases begin with."""
        return f"{self.name}/"

    def lists(self, name: str, namespace: str = "") -> bool:
        """Whether an adapter or alias of that name is in its list.

        ``namespace`` is that of another tenant whose it is: a pattern that does not begin with it is not
        about what is another's.
        """
        return name in self._names or any(
            pattern.startswith(namespace) and matches(pattern, name) for pattern in self._patterns
        )

    def limits_with(self, name: str) -> TenantLimits:
        """What it may take with the adapter that the registry calls so: of the first pattern that matches."""
        return next(
            (limits for pattern, limits in self.settings.adapter_limits.items() if matches(pattern, name)),
            NO_LIMITS,
        )

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(name for name in self.settings.adapters if "*" not in name)

    @cached_property
    def _patterns(self) -> tuple[str, ...]:
        return tuple(pattern for pattern in self.settings.adapters if "*" in pattern)


class KeyRight(StrEnum):
    """What a key may be for; one key may be for several."""

    INFER = "infer"  # ask for answers
    MANAGE = "manage"  # publish, change, share and delete the tenant's own adapters and aliases
    ADMIN = "admin"  # everything, as an operator


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key of a tenant, without the key."""

    id: str
    tenant: str  # its id
    prefix: str  # what the key begins with
    digest: str  # SHA-256, hexadecimal
    created: float  # unix seconds
    expires: float | None  # unix seconds
    scopes: tuple[KeyRight, ...] = (KeyRight.INFER,)
    priority: int = 0  # that its requests may have at least; the lower, the earlier
    ended: bool = False  # it was revoked, and what runs with it is to end


def is_tenant_name(text: str) -> bool:
    """Whether a tenant may be called so: ASCII letters, digits, ".", "_" and "-", at most 64; not PODS."""
    return _NAME.fullmatch(text) is not None and text != PODS


def is_pattern(text: str) -> bool:
    """Whether some adapter's name could match the pattern: no operator of mixes but "*", no spaces."""
    return 0 < len(text) <= MAX_NAME and not re.search(r"[+@\s]|\*\*", text) and text.isprintable()


def new_key() -> str:
    """A key that nobody guesses: 256 random bits."""
    return f"ml-{secrets.token_urlsafe(32)}"


def digest_of_key(key: str) -> str:
    """What is kept of a key. Keys are random and long, so that a plain hash of one can't be searched."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def prefix_of_key(key: str) -> str:
    """What is shown of a key."""
    return key[:_SHOWN]


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` is ``pattern`` with any characters in place of each "*". Takes linear time."""
    first, *parts = pattern.split("*")
    if not parts:
        return name == pattern
    last = parts.pop()
    place, end = len(first), len(name) - len(last)
    if place > end or not (name.startswith(first) and name.endswith(last)):
        return False
    for part in parts:
        found = name.find(part, place, end)
        if found < 0:
            return False
        place = found + len(part)
    return True
