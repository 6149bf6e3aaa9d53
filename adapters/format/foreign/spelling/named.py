"""The tensors of a file by what their names mean on a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.faults import Faults, shown
from manylora.adapters.format.files import enum_name
from manylora.adapters.format.foreign.fused.roles import Blocks, Place, place_of
from manylora.adapters.format.foreign.names import PREFIX, Part, Places, Rule, Spelled, take_apart
from manylora.adapters.format.weights.tensors import TensorFile

Config = Mapping[str, Any]


@dataclass
class Named:
    """The tensors of a file by what their names mean."""

    keys: dict[str, str] = field(default_factory=dict)  # PEFT's name -> the file's
    paths: dict[str, str] = field(default_factory=dict)  # the file's path of a module -> the base's name
    targets: dict[str, str] = field(default_factory=dict)  # the same, of whatever kind of adapter
    placed: dict[str, Place] = field(default_factory=dict)  # the file's path -> its place, where no name fits
    parts: dict[str, dict[Part, Spelled]] = field(default_factory=dict)  # the file's path -> its tensors
    rules: set[Rule] = field(default_factory=set)


def is_lora(config: Config | None) -> bool:
    """Whether the tensors are those of a LoRA, which is what nothing else is said of."""
    return config is None or enum_name(config.get("peft_type")) in (None, "LORA")


def name_tensors(config: Config | None, file: TensorFile, base: BaseModel, faults: Faults) -> Named:
    """Name the tensors; two that are one by PEFT's names are a fault."""
    places, blocks, named = Places(base), Blocks(base), Named()
    for key in file.infos:
        spelled = take_apart(key, lora=is_lora(config))
        canonical = _canonical(spelled, places, blocks, named)
        if canonical in named.keys:
            faults.add(f"{shown(named.keys[canonical])} and {shown(key)} both are {shown(canonical)}")
        named.keys[canonical] = key
    return named


def _canonical(spelled: Spelled, places: Places, blocks: Blocks, named: Named) -> str:
    """PEFT's name of a tensor, its own where none is known; what was learned of it goes into ``named``."""
    if spelled.part is Part.OTHER:
        split = places.split(spelled.key)
        if split is None:
            return spelled.key
        named.rules |= split.rules
        if split.is_target:
            named.targets[split.path] = split.module
        return f"{PREFIX}{split.module}.{split.rest}"
    found = places.find(spelled.path)
    place = place_of(spelled.path) if found is None else None
    if found is None and (place is None or not blocks.means(place)):
        return spelled.key
    parts = named.parts.setdefault(spelled.path, {})
    parts.setdefault(spelled.part, spelled)  # a second one is found by its equal name
    named.rules |= {spelled.rule} - {None}  # type: ignore[arg-type]
    if found is None:
        assert place is not None, "one of the two is known"
        named.placed[spelled.path] = place
        return f"{spelled.path}.{spelled.part}"
    named.paths[spelled.path] = named.targets[spelled.path] = found[0]
    named.rules |= found[1]
    return f"{PREFIX}{found[0]}.{spelled.suffix}"
