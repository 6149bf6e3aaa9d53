"""What a row is after its format is out of the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Messages = tuple[Mapping[str, Any], ...]  # as the chat template takes them
Tools = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """File and line that a row of data came from."""

    path: Path
    line: int
    row: int = 0  # of a JSON array, where one line may have several rows; counted from 1


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation; ``weights[i]`` is 1 where message i is learned (only assistants are), else 0."""

    origin: Origin
    messages: Messages
    weights: tuple[int, ...]
    tools: Tools = ()


@dataclass(frozen=True, slots=True)
class TextRow:
    """A prompt and what follows it, as text."""

    origin: Origin
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class PlainRow:
    """A text that is learned as it stands."""

    origin: Origin
    text: str


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A conversation up to the assistant's turn, and two answers of which the first is the better."""

    origin: Origin
    prompt: Messages
    chosen: Mapping[str, Any]
    rejected: Mapping[str, Any]
    tools: Tools = ()


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A text and the name of its class."""

    origin: Origin
    text: str
    label: str


@dataclass(frozen=True, slots=True)
class ContrastRow:
    """A text with those that belong to it and those that don't, or with another and how alike they are."""

    origin: Origin
    anchor: str
    positives: tuple[str, ...]  # one where there is a score
    negatives: tuple[str, ...] = ()
    score: float | None = None  # the cosine that both should have


Row = ChatRow | TextRow | PlainRow | PreferenceRow | LabelRow | ContrastRow


def content_digest(row: Row) -> str:
    """Digest of what a row says, whatever line it is on."""
    fields = {name: getattr(row, name) for name in row.__slots__ if name != "origin"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()
