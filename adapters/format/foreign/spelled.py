"""Safetensors whose names are not quite PEFT's: with an adapter's name, other prefixes, other endings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from manylora.adapters.format.base import BaseModel, TargetModule
from manylora.adapters.format.config.config import AdapterConfig, parse_config
from manylora.adapters.format.config.patterns import Deadline, PatternFault, assign
from manylora.adapters.format.faults import Faults, shown, some
from manylora.adapters.format.files import enum_name
from manylora.adapters.format.foreign.canonical import config_of, tensors_of
from manylora.adapters.format.foreign.change import Change, LowRank
from manylora.adapters.format.foreign.moved_config import moved_config
from manylora.adapters.format.foreign.names import PREFIX, Part, Places, Rule, Spelled, take_apart
from manylora.adapters.format.foreign.placing import place_roles
from manylora.adapters.format.foreign.roles import Blocks, Place, place_of
from manylora.adapters.format.weights.tensors import TensorFile

_PATHS = frozenset({Rule.PREFIX, Rule.WRAPPER, Rule.FLAT})  # after which the config may name other modules
_OWN_ALPHA = frozenset({Rule.DOWN_UP, Rule.DIFFUSERS})  # spellings of tools to which no alpha means alpha = r

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Canonical:
    """An artifact in PEFT's form, in memory."""

    config: Config
    tensors: Mapping[str, torch.Tensor]
    rules: frozenset[Rule]


@dataclass
class _Named:
    """The tensors of a file by what their names mean."""

    keys: dict[str, str] = field(default_factory=dict)  # PEFT's name -> the file's
    paths: dict[str, str] = field(default_factory=dict)  # the file's path of a module -> the base's name
    targets: dict[str, str] = field(default_factory=dict)  # the same, of whatever kind of adapter
    placed: dict[str, Place] = field(default_factory=dict)  # the file's path -> its place, where no name fits
    parts: dict[str, dict[Part, Spelled]] = field(default_factory=dict)  # the file's path -> its tensors
    rules: set[Rule] = field(default_factory=set)


def is_respelled(config: Config | None, header: TensorFile, base: BaseModel) -> bool:
    """Whether the names of a file's tensors are not PEFT's, but would be by some rule."""
    unreported = Faults()
    named = _name(config, header, base, unreported)
    return bool(named.rules or named.placed or len(unreported)) or (config is None and bool(named.parts))


def respell(config: Config | None, file: TensorFile, base: BaseModel, faults: Faults) -> Canonical | None:
    """The artifact in PEFT's form; None where it has that already, or is not known to be anything else."""
    named = _name(config, file, base, faults)
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


def _name(config: Config | None, file: TensorFile, base: BaseModel, faults: Faults) -> _Named:
    lora = config is None or enum_name(config.get("peft_type")) in (None, "LORA")
    places, blocks, named = Places(base), Blocks(base), _Named()
    for key in file.infos:
        spelled = take_apart(key, lora=lora)
        canonical = _canonical(spelled, places, blocks, named)
        if canonical in named.keys:
            faults.add(f"{shown(named.keys[canonical])} and {shown(key)} both are {shown(canonical)}")
        named.keys[canonical] = key
    return named


def _canonical(spelled: Spelled, places: Places, blocks: Blocks, named: _Named) -> str:
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


def _turned(named: _Named, file: TensorFile, base: BaseModel, faults: Faults) -> frozenset[str]:
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
    named: _Named,
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
    scales = _scales(parsed, named, file, faults)
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


def _scales(
    parsed: AdapterConfig | None, named: _Named, file: TensorFile, faults: Faults
) -> Mapping[str, float]:
    """What B A is multiplied with, by path, as far as it is known: by its alpha tensor, or by the config."""
    ranks = {path: _rank(parts, file) for path, parts in named.parts.items()}
    scales: dict[str, float] = {}
    if parsed is not None:
        scales |= _scales_by_config(parsed, named, ranks, faults)
    for path, parts in named.parts.items():
        if Part.ALPHA in parts and ranks[path]:
            alpha = _number(parts[Part.ALPHA].key, file, faults)
            scale = alpha / ranks[path]
            if path in scales and abs(scales[path] - scale) > 1e-3 * abs(scale):
                faults.add(f"{shown(parts[Part.ALPHA].key)} is {alpha:g}, and the config says otherwise")
            scales[path] = scale
        elif path not in scales and any(part.rule in _OWN_ALPHA for part in parts.values()):
            scales[path] = 1.0
    missing = [path for path, parts in named.parts.items() if path not in scales and Part.A in parts]
    if missing and not len(faults):
        faults.add(
            f"alpha of {some(missing, len(missing))} is not known: put an adapter_config.json with "
            "peft_type, r, lora_alpha and target_modules beside the weights"
        )
    return scales


def _scales_by_config(
    parsed: AdapterConfig, named: _Named, ranks: Mapping[str, int], faults: Faults
) -> dict[str, float]:
    names = {path: path.removeprefix(PREFIX) for path in named.parts}
    try:
        deadline = Deadline()
        own_ranks = assign(parsed.rank_pattern, list(names.values()), deadline)
        own_alphas = assign(parsed.alpha_pattern, list(names.values()), deadline)
    except PatternFault as fault:
        faults.add(f"rank_pattern or alpha_pattern: {fault}")
        return {}
    scales = {}
    for path, name in names.items():
        rank = parsed.rank_pattern[own_ranks[name]] if name in own_ranks else parsed.r
        alpha = parsed.alpha_pattern[own_alphas[name]] if name in own_alphas else parsed.alpha
        if ranks[path] and ranks[path] not in (rank, 2 * rank, 3 * rank):
            faults.add(f"rank of {shown(path)} is {ranks[path]} in its tensors and {rank} in the config")
        scales[path] = alpha / (rank**0.5 if parsed.use_rslora else rank)
    return scales


def _rank(parts: Mapping[Part, Spelled], file: TensorFile) -> int:
    """The rank by B, which fused projections share: 0 where B is missing or no matrix."""
    for part, axis in ((Part.B, 1), (Part.EMBEDDING_B, 1)):
        if part in parts and len(file.infos[parts[part].key].shape) >= 2:
            shape = file.infos[parts[part].key].shape
            a = parts.get(Part.A)
            turned = (
                a is not None
                and len(file.infos[a.key].shape) == 2
                and (file.infos[a.key].shape[0] != shape[1] and file.infos[a.key].shape[1] == shape[0])
            )
            return shape[0] if turned else shape[axis]
    return 0


def _number(key: str, file: TensorFile, faults: Faults) -> float:
    info = file.infos[key]
    if info.shape not in ((), (1,)) or not file.can_read(key):
        faults.add(f"{shown(key)} should hold one number in F32, F16 or BF16")
        return 1.0
    return float(file.tensor(key).float().reshape(()))


def _low_rank(
    path: str,
    named: _Named,
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
