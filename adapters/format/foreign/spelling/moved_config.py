"""The config of an adapter whose modules have other names in the base than they had where it was trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.config.config import parse_config
from manylora.adapters.format.config.patterns import Deadline, PatternFault, assign
from manylora.adapters.format.config.targets import names_meaning, select_targets, table_targets
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.foreign.names import Places

_PATTERNS = ("rank_pattern", "alpha_pattern")
_MASKED = ".lora_E"
_LISTS = ("modules_to_save", "feedforward_modules")


def moved_config(config: Mapping[str, Any], names: Mapping[str, str], base: BaseModel) -> dict[str, Any]:
    """``config`` for the names that the base has: ``names`` maps those of the file's tensors to them.

    Module names without a dot mean the same in both and stay, so that tensors that are missing are found.
    """
    moved = dict(config)
    places = Places(base)
    for key in _LISTS:
        if isinstance(moved.get(key), list):
            moved[key] = [_moved(entry, places, base) for entry in moved[key]]
    tokens = moved.get("trainable_token_indices")
    if isinstance(tokens, dict):
        moved["trainable_token_indices"] = {_moved(k, places, base): v for k, v in tokens.items()}
    for key in _PATTERNS:
        if isinstance(moved.get(key), dict) and moved[key]:
            moved[key] = _by_new_names(moved[key], names)
    targets = moved.get("target_modules")
    plain = isinstance(targets, list) and all(isinstance(t, str) and "." not in t for t in targets)
    if not plain and names and not _selects(moved, names.values(), base):
        moved["target_modules"] = names_meaning(names.values(), [*base.modules, *base.others])
        for key in ("exclude_modules", "layers_to_transform", "layers_pattern"):
            moved.pop(key, None)
    return moved


def _moved(entry: Any, places: Places, base: BaseModel) -> Any:
    """A module's name, or its ending, as the base has it; what the base knows stays."""
    if not isinstance(entry, str) or any(n.endswith(entry) for n in (*base.modules, *base.others)):
        return entry
    found = places.find(entry)
    return entry if found is None else found[0]


def _by_new_names(pattern: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """What a pattern says of each module, if by the names in the base it would say something else.

    AdaLoRA's has a mask for each module, under the name of a tensor of it.
    """
    if any(isinstance(value, list) for value in pattern.values()):
        return {_of_tensor(key, names): value for key, value in pattern.items()}
    try:
        old = assign(pattern, list(names), Deadline())
        new = assign(pattern, list(names.values()), Deadline())
    except PatternFault:
        return dict(pattern)  # a fault when the config is read
    if all(new.get(name) == old.get(path) for path, name in names.items()):
        return dict(pattern)
    return {names[path]: pattern[fit] for path, fit in sorted(old.items())}


def _of_tensor(key: str, names: Mapping[str, str]) -> str:
    module, mark, rest = key.rpartition(_MASKED)
    return f"{names.get(module, module)}{mark}{rest}" if mark else names.get(key, key)


def _selects(config: Mapping[str, Any], names: Iterable[str], base: BaseModel) -> bool:
    """Whether the config selects exactly the modules that have tensors."""
    unreported = Faults()
    parsed = parse_config(config, unreported)
    if parsed is None:
        return False
    found = select_targets(parsed, base, unreported) or {}
    return {*found, *table_targets(parsed, base)} == set(names)
