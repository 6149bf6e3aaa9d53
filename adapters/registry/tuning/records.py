"""What the registry knows of fine-tuning jobs: immutable facts, as they were when read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from manylora.adapters.registry.tuning.states import JobState, Need

Level = Literal["info", "warn", "error"]
Kind = Literal["message", "metrics", "sample"]


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job. ``asked`` never changes; ``found`` is what its workers have found out."""

    id: str
    created: float  # unix seconds
    status: JobState
    needs: Need  # the work that it waits for next
    base: str  # fingerprint of the base model
    training_file: str
    asked: Mapping[str, Any]  # JSON
    found: Mapping[str, Any] = field(default_factory=dict)  # JSON
    validation_file: str | None = None
    tenant: str | None = None  # whose it is, by id
    paused_from: JobState | None = None
    began: float | None = None  # unix seconds, when it was first worked on
    worker: str | None = None  # who has its lease
    leased_until: float | None = None
    takes: int = 0  # how often it was taken since it last got on


@dataclass(frozen=True, slots=True)
class RequestKey:
    """By which a request for a job is known when it is sent again."""

    digest: str  # of the key and whose it is
    body: str  # digest of what was asked for


class KeyReused(Exception):
    """The key came before, with a request for something else."""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened to a job."""

    number: int  # they go up
    id: str
    job: str
    created: float  # unix seconds
    level: Level
    kind: Kind
    message: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A step of a job whose weights can be asked for."""

    number: int
    id: str
    job: str
    created: float
    step: int
    name: str  # the model's, as its owner calls it
    metrics: Mapping[str, Any]
