"""Under which names tools keep an adapter: what is fetched, kept of an archive, and taken of an upload."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from manylora.adapters.format.files import KEPT_NAMES, WEIGHTS_NAME

Found = TypeVar("Found")

GGUF, SAFETENSORS = ".gguf", ".safetensors"
# In storages whose folders can't be listed these are asked for, beside those of PEFT.
PROBED_NAMES = (
    "adapters.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter.gguf",
    "adapter_model.gguf",
    "lora.gguf",
)
_FIRST = ("adapters.safetensors", "pytorch_lora_weights.safetensors")  # what others beside them are copies of
_WHOLE_MODELS = re.compile(
    r"(?:pytorch_)?model(?:[-_.].*)?\.safetensors|.*-\d{5}-of-\d{5}\.(?:gguf|safetensors)"
)
MAX_NAME = 200  # characters


def may_be_weights(name: str) -> bool:
    """Whether a file of that name may hold an adapter as another tool than PEFT writes it."""
    return (
        name.endswith((GGUF, SAFETENSORS))
        and name != WEIGHTS_NAME
        and not name.startswith(".")
        and len(name) <= MAX_NAME
        and name.isprintable()
        and not _WHOLE_MODELS.fullmatch(name)
    )


def foreign_weights(names: Collection[str]) -> tuple[str, ...]:
    """The files among ``names`` that may be the adapter where PEFT's is not; several are a fault."""
    if WEIGHTS_NAME in names:
        return ()
    first = next((name for name in _FIRST if name in names), None)
    return (first,) if first is not None else tuple(sorted(name for name in names if may_be_weights(name)))


def files_of_adapter(names: Collection[str]) -> tuple[str, ...]:
    """The files among ``names`` that an adapter consists of, whoever wrote it."""
    return (*(name for name in KEPT_NAMES if name in names), *foreign_weights(names))


def only(file: str, names: Mapping[str, Found]) -> dict[str, Found]:
    """Of what is in a folder the weights called ``file``, and what may lie beside them."""
    return {name: found for name, found in names.items() if name == file or _beside(name)}


def _beside(name: str) -> bool:
    return name in KEPT_NAMES and name != WEIGHTS_NAME


def names_a_file(path: str) -> bool:
    """Whether a path or a URL names the one file of an adapter, not a folder."""
    return may_be_weights(path.rstrip("/").rpartition("/")[2])
