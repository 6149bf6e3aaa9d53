"""Where an adapter comes from, recorded in the metadata of its safetensors file.

The metadata is part of the weights file, so it travels with the adapter, is covered by its digest and is
ignored by PEFT. One key holds JSON of ours; nothing in it changes what the adapter computes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manylora.adapters.format.files import WEIGHTS_NAME, FileFault, open_regular, parse_json_object, read_into

KEY = "manylora"
_MAX_HEADER = 16 << 20  # bytes; the metadata of larger ones is not looked at
_MAX_JSON = 1 << 16  # characters
_MAX_FINGERPRINT = 128  # characters
_PRECISIONS = ("none", "nf4", "int8")


@dataclass(frozen=True)
class Provenance:
    """What is known of an adapter's making. Fields that were not recorded are None or empty."""

    base_quantization: str | None = None  # of the base it was trained on: "none", "nf4" or "int8"
    base_fingerprint: str | None = None
    lineage: Mapping[str, Any] = field(default_factory=dict)  # of a composed adapter: method, members, ...

    def metadata(self) -> dict[str, str]:
        """The provenance as metadata for ``safetensors.torch.save_file``.

        One key only: the library writes several in random order, and the same adapter made again would
        have another digest.
        """
        known = {key: value for key, value in vars(self).items() if value}
        return {KEY: json.dumps(known, sort_keys=True)}

    def warning(self, quantization: str) -> str | None:
        """What to tell somebody who runs the adapter on a base in ``quantization``; None: nothing known."""
        if self.base_quantization in (None, quantization):
            return None
        made, runs = (_base_in(kind) for kind in (self.base_quantization, quantization))
        return f"it was trained on a base {made} and runs on one {runs}: answers may differ a little"


def read_provenance(directory: Path) -> Provenance:
    """What the adapter in ``directory`` says of itself; empty where it says nothing that can be read.

    It is a stranger's word: bounded, plain JSON, and only ever shown.
    """
    try:
        recorded = _recorded(directory / WEIGHTS_NAME)
    except (FileFault, OSError):
        return Provenance()
    quantization, base = recorded.get("base_quantization"), recorded.get("base_fingerprint")
    lineage = recorded.get("lineage")
    return Provenance(
        base_quantization=quantization if quantization in _PRECISIONS else None,
        base_fingerprint=base if isinstance(base, str) and len(base) <= _MAX_FINGERPRINT else None,
        lineage=lineage if isinstance(lineage, dict) else {},
    )


def _recorded(path: Path) -> Mapping[str, Any]:
    """Our JSON in the metadata, which can be written back as it is (1e999 could not)."""
    text = _metadata(path).get(KEY, "{}")
    if not isinstance(text, str) or len(text) > _MAX_JSON:
        return {}
    recorded = parse_json_object(text.encode("utf-8", "replace"), KEY)
    try:
        json.dumps(recorded, allow_nan=False)
    except ValueError:
        return {}
    return recorded


def _metadata(path: Path) -> Mapping[str, Any]:
    """The ``__metadata__`` of a safetensors file, with nothing else read than its header."""
    with open_regular(path) as file:
        prefix = bytearray(8)
        read_into(file, memoryview(prefix), path.name)
        length = int.from_bytes(prefix, "little")
        if length > _MAX_HEADER:
            raise FileFault(f"the header of {path.name} is too long")
        header = bytearray(length)
        read_into(file, memoryview(header), path.name)
    metadata = parse_json_object(bytes(header), path.name).get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def _base_in(quantization: str | None) -> str:
    return "in 16 or 32 bits" if quantization == "none" else f"in {quantization}"
