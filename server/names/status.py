"""What is shown of an adapter: the facts of the registry beside where its bytes are and what it served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manylora.adapters.registry.records import NameRecord, RevisionRecord, State
from manylora.server.metrics.request_metrics import Traffic
from manylora.server.residency.residency import BytesByTier


@dataclass(frozen=True)
class Registered:
    """What ``/v1/models`` shows of a name that serves."""

    name: str
    digest: str
    source: str
    rank: int
    modules: int
    nbytes: int  # on the device, or as stored if it has not been there yet
    resident: bool
    created: float  # unix seconds
    labels: tuple[str, ...] | None  # of an adapter that classifies
    virtual_tokens: int  # of its soft prompt


@dataclass(frozen=True)
class AdapterStatus:
    """Everything about a name. Facts of the revision are 0, "" or empty while there is none."""

    name: str
    state: State
    digest: str | None  # of the current revision
    history: tuple[str, ...]  # digests it can be rolled back to, the latest first; the current one included
    error: str | None
    pinned: bool
    tags: tuple[str, ...]
    created: float  # unix seconds, like the other times
    updated: float
    last_used: float | None
    source: str
    rank: int
    modules: int
    total_modules: int
    kind: str
    base_model_name: str | None
    residency: BytesByTier
    references: int  # requests that asked for the name and run or wait, on this server
    revision_references: Mapping[str, int]  # requests of each revision of its history, by whichever name
    traffic: Traffic  # on this server
    lineage: Mapping[str, Any] | None
    details: Mapping[str, Any]
    shared: tuple[str, ...]  # tenants, by name, that may use it besides whose it is; "*" is all


@dataclass(frozen=True)
class Filter:
    """Which names are asked for: all of this must be true of them."""

    prefix: str = ""
    tag: str | None = None
    state: State | None = None
    resident: bool | None = None  # the current revision is on the device


EVERY_NAME = Filter()


@dataclass(frozen=True)
class Deleted:
    """What became of a name that was deleted."""

    bytes_freed: int  # on the device
    drained: bool  # every request that asked for the name has ended
    running: int  # requests by that name that have not; its memory is freed when they end


def registered_of(record: NameRecord, facts: RevisionRecord, *, nbytes: int, resident: bool) -> Registered:
    """What a name is that serves the revision of ``facts``."""
    return Registered(
        name=record.name,
        digest=facts.digest,
        source=record.source,
        rank=facts.rank,
        modules=facts.modules,
        nbytes=nbytes,
        resident=resident,
        created=record.created,
        labels=facts.labels,
        virtual_tokens=facts.virtual_tokens,
    )


def status_of(
    record: NameRecord,
    facts: RevisionRecord | None,
    *,
    residency: BytesByTier,
    references: int,
    revision_references: Mapping[str, int],
    traffic: Traffic,
    last_used: float | None,
) -> AdapterStatus:
    """Put together what the registry and this server know of one name."""
    times = [time for time in (record.last_used, last_used) if time is not None]
    return AdapterStatus(
        name=record.name,
        state=record.state,
        digest=record.digest,
        history=record.history,
        error=record.error,
        pinned=record.pinned,
        tags=record.tags,
        created=record.created,
        updated=record.updated,
        last_used=max(times, default=None),
        source=record.source,
        rank=0 if facts is None else facts.rank,
        modules=0 if facts is None else facts.modules,
        total_modules=0 if facts is None else facts.total_modules,
        kind="" if facts is None else facts.kind,
        base_model_name=None if facts is None else facts.base_model_name,
        residency=residency,
        references=references,
        revision_references=revision_references,
        traffic=traffic,
        lineage=None if facts is None else facts.lineage,
        details={} if facts is None else facts.details,
        shared=record.shared,
    )
