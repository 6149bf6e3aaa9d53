"""Safetensors whose names are not quite PEFT's: with an adapter's name, other prefixes, other endings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from manylora.adapters.format.base import BaseModel, TargetModule
from manylora.adapters.format.config.config import AdapterConfig, parse_config
from manylora.adapters.format.faults import Faults, shown, some
from manylora.adapters.format.files import enum_name
from manylora.adapters.format.foreign.canonical import config_of, tensors_of
from manylora.adapters.format.foreign.change import Change, LowRank
from manylora.adapters.format.foreign.fused.placing import place_roles
from manylora.adapters.format.foreign.names import PREFIX, Part, Rule
from manylora.adapters.format.foreign.spelling.moved_config import moved_config
from manylora.adapters.format.foreign.spelling.named import Config, Named, name_tensors
from manylora.adapters.format.foreign.spelling.scales import OWN_ALPHA, scales_of
from manylora.adapters.format.weights.tensors import TensorFile

_PATHS = frozenset({Rule.PREFIX, Rule.WRAPPER, Rule.FLAT})  # after which the config may name other modules


@dataclass(frozen=True)
class Canonical:
    """An artifact in PEFT's form, in memory."""

    config: Config
    tensors: Mapping[str, torch.Tensor]
    rules: frozenset[Rule]


def is_respelled(config: Config | None, header: TensorFile, base: BaseModel) -> bool:
    """Whether the names of a file's tensors are not PEFT's, but would be by some rule."""
    unreported = Faults()
    named = name_tensors(config, header, base, unreported)
    if config is None and not named.rules & {Rule.ALPHA, *OWN_ALPHA}:
        return False  # without a scale the missing config is the fault
    return bool(named.rules or named.placed or len(unreported))


def respell(config: Config | None, file: TensorFile, base: BaseModel, faults: Faults) -> Canonical | None:
    """The artifact in PEFT's form; None where it has that already, or is not known to be anything else."""
    named = name_tensors(config, file, base, faults)
    turned = _turned(named, file, base, faults)
    if len(faults):
        return None
    rebuilt = bool(named.placed) or bool(turned) or Rule.ALPHA in named.rules or config is None
    if not rebuilt:
        if not named.rules:
            return None
        assert config is not None, "without a config everything is built anew"
        tensors = {key: file.tensor(old) for key, old in named.keys.items()}
        own = {path.removeprefix(PREFIX): name for path, name in named.targets.items()}
        moved = moved_config(config, own, base) if named.rules & _PATHS else dict(config)
        return Canonical(moved, tensors, frozenset(named.rules))
    if config is None and not any(len(parts) > 1 for parts in named.parts.values()):
        return None
    return _rebuilt(config, named, turned, file, base=base, faults=faults)


def _turned(named: Named, file: TensorFile, base: BaseModel, faults: Faults) -> frozenset[str]:
    """The paths whose A and B are transposed, [in, r] and [r, out]: by the spelling and the shapes."""
    turned, unclear = set(), []
    for path, name in named.paths.items():
        parts, module = named.parts[path], base.modules.get(name)
        a, b = parts.get(Part.A), parts.get(Part.B)
        if a is None or b is None or module is None or Rule.LOWER_CASE not in (a.rule, b.rule):
            continue
        if a.key.endswith(".weight"):
            continue
        fits, other = _fitting(file.infos[a.key].shape, file.infos[b.key].shape, module)
        if fits and other:
            unclear.append(path)
        elif other:
            turned.add(path)
    if turned:
        return frozenset(turned | set(unclear))
    if unclear and len(unclear) == len(named.paths):
        faults.add(f"A and B may be either way round: {some(unclear, len(unclear))}")
    return frozenset()


def _fitting(a: tuple[int, ...], b: tuple[int, ...], module: TargetModule) -> tuple[bool, bool]:
    """Whether the shapes are [r, in] and [out, r], and whether they are [in, r] and [r, out]."""
    if len(a) != 2 or len(b) != 2:
        return False, False
    straight = (a[1], b[0]) == (module.in_features, module.out_features) and a[0] == b[1]
    other = (a[0], b[1]) == (module.in_features, module.out_features) and a[1] == b[0]
    return straight, other


def _rebuilt(
    config: Config | None,
    named: Named,
    turned: frozenset[str],
    file: TensorFile,
    *,
    base: BaseModel,
    faults: Faults,
) -> Canonical | None:
    """The artifact built anew, from each path's A and B and the scale that they are to have."""
    parsed = _lora_config(config, faults)
    if len(faults):
        return None
    rules = set(named.rules)
    scales = scales_of(parsed, named, file, faults)
    changes = {path: _low_rank(path, named, turned, scales, file=file, faults=faults) for path in named.parts}
    if len(faults):
        return None
    if turned:
        rules.add(Rule.TRANSPOSED)
    tables = () if base.vocabulary is None else (base.vocabulary.embedding,)
    found = {named.paths[path]: change for path, change in changes.items() if path in named.paths and change}
    placed = {path: (named.placed[path], c) for path, c in changes.items() if path in named.placed and c}
    if placed:
        joined, more = place_roles(placed, base, faults)
        rules |= more
        for name in joined.keys() & found.keys():
            faults.add(f"{shown(name)} is changed under its own name and under another one")
        found |= joined
    if len(faults):
        return None
    used = {spelled.key for parts in named.parts.values() for spelled in parts.values()}
    others = {key: file.tensor(old) for key, old in named.keys.items() if old not in used}
    change = Change(
        modules={name: found[name] for name in _ordered(found, base) if name not in tables},
        tables={name: found[name] for name in tables if name in found},
        options={} if config is None else config,
        others=others,
    )
    return Canonical(config_of(change, base), tensors_of(change), frozenset(rules))


def _ordered(found: Mapping[str, LowRank], base: BaseModel) -> list[str]:
    order = {name: index for index, name in enumerate(base.modules)}
    return sorted(found, key=lambda name: (order.get(name, len(order)), name))


def _lora_config(config: Config | None, faults: Faults) -> AdapterConfig | None:
    if config is None:
        return None
    if enum_name(config.get("peft_type")) != "LORA":
        faults.add(
            f"of peft_type {shown(config.get('peft_type'))} no tensors can be split, joined or rescaled"
        )
        return None
    return parse_config(config, faults)


def _low_rank(
    path: str,
    named: Named,
    turned: frozenset[str],
    scales: Mapping[str, float],
    *,
    file: TensorFile,
    faults: Faults,
) -> LowRank | None:
    parts = named.parts[path]
    embedding = Part.EMBEDDING_A in parts or Part.EMBEDDING_B in parts
    a_part, b_part = (Part.EMBEDDING_A, Part.EMBEDDING_B) if embedding else (Part.A, Part.B)
    missing = [part for part in (a_part, b_part) if part not in parts]
    if missing:
        faults.add(f"missing tensors: of {shown(path)} the file has {some(sorted(parts), len(parts))} only")
        return None
    keys: dict[Part, str] = {part: spelled.key for part, spelled in parts.items() if part is not Part.ALPHA}
    unread = [key for key in keys.values() if not file.can_read(key)]
    if unread:
        return None  # a fault already, by its type
    a, b = file.tensor(keys[a_part]), file.tensor(keys[b_part])
    if a.ndim == 4 and b.ndim == 4 and a.shape[2:] == b.shape[2:] == (1, 1):
        a, b = a.flatten(1), b.flatten(1)  # as kohya writes what were 1x1 convolutions
    if a.ndim != 2 or b.ndim != 2 or 0 in a.shape or 0 in b.shape:
        faults.add(f"A and B of {shown(path)} are no matrices: {list(a.shape)} and {list(b.shape)}")
        return None
    if path in turned:
        a, b = a.T, b.T
    rows = {part: file.tensor(keys[part]) for part in (Part.MAGNITUDE, Part.B_BIAS) if part in keys}
    for part, values in rows.items():
        if values.numel() != b.shape[0] or values.shape[:1] != (b.shape[0],):
            faults.add(
                f"size mismatch for {shown(keys[part])}: {list(values.shape)}, {[b.shape[0]]} is needed"
            )
            return None
    flat = {part: values.flatten() for part, values in rows.items()}
    return LowRank(a, b, scales.get(path, 1.0), flat.get(Part.MAGNITUDE), flat.get(Part.B_BIAS))
