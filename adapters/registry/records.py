"""What the registry knows of names, revisions and aliases: immutable facts, as they were when read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """Whether an adapter's name serves, is on its way, is being deleted, or has failed."""

    LOADING = "loading"  # it has never served, and is being fetched or checked
    READY = "ready"
    DRAINING = "draining"  # being deleted: no new requests, the running ones finish
    FAILED = "failed"  # it can't serve; its error says why


@dataclass(frozen=True)
class RevisionRecord:
    """The facts about one revision, found when it was validated."""

    digest: str  # 64 hex digits
    nbytes: int  # of all tensors, as stored
    rank: int  # the largest of any module
    modules: int  # that the adapter changes
    total_modules: int  # that the base has
    kind: str  # "LORA", "LORA+DORA", "IA3", …
    base_model_name: str | None  # what the artifact says it was trained on
    base_fingerprint: str | None
    source: str  # a URL or path, without credentials
    created: float  # unix seconds, when it was first published here
    lineage: Mapping[str, Any] | None = None  # JSON-safe: members, weights, method
    details: Mapping[str, Any] = field(default_factory=dict)  # JSON-safe facts for people

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes of an adapter that classifies."""
        return tuple(self.details["labels"]) if "labels" in self.details else None

    @property
    def virtual_tokens(self) -> int:
        """Positions of the context that the soft prompt of an adapter takes."""
        return int(self.details.get("virtual_tokens", 0))


@dataclass(frozen=True)
class NameRecord:
    """An adapter's name and what it points to. ``history[0]`` is ``digest`` wherever there is one."""

    name: str
    digest: str | None  # of the current revision
    state: State
    error: str | None  # why it failed; on a name that serves, why the latest attempt to replace it did
    pinned: bool
    tags: tuple[str, ...]  # sorted
    created: float  # unix seconds, like the other times
    updated: float
    last_used: float | None
    source: str  # of the current revision, or of what is being loaded
    history: tuple[str, ...]  # digests this name has pointed to, the latest first, none twice
    owner: str = ""  # the process that is loading or draining it
    shared: tuple[str, ...] = ()  # tenants, by name, that may use it besides whose it is; "*" is all
    shared_since: tuple[tuple[str, float], ...] = ()  # when each of them was given it, where that is known


@dataclass(frozen=True)
class AliasRecord:
    """A name for one model string, or for a weighted split of several."""

    name: str
    arms: tuple[tuple[str, float], ...]  # (model string, share); shares are positive, of any sum
    created: float  # unix seconds
    updated: float


@dataclass(frozen=True, slots=True)
class AliasArm:
    """One of the model strings that an alias stands for, by name."""

    alias: str
    target: str  # "" is the base model, whose name differs between servers


@dataclass(frozen=True)
class ArmRecord:
    """What was counted of one arm of an alias: one of the model strings that it stands for."""

    since: float  # unix seconds, when counting began
    counts: Mapping[str, float]
