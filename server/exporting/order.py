"""What the process that writes a model is told, and what it tells: one JSON object a line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class OrderedMember:
    """An adapter that a standalone model is to contain."""

    name: str
    directory: str
    digest: str  # of the revision that must be there
    weight: float


@dataclass(frozen=True, slots=True)
class ExportOrder:
    """What the process of an export is to write: base, adapters, directory and form."""

    base_directory: str
    base_name: str
    members: tuple[OrderedMember, ...]
    out: str  # must not exist
    dtype: str | None  # a key of manylora.adapters.merge.export_plan.DTYPES; None keeps each tensor's own
    max_shard_bytes: int
    verify: bool

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def parse(line: bytes) -> ExportOrder:
        values: dict[str, Any] = json.loads(line)
        members = tuple(OrderedMember(**member) for member in values.pop("members"))
        return ExportOrder(members=members, **values)
