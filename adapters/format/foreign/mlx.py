"""Adapters of MLX-LM: ``adapters.safetensors`` and an ``adapter_config.json`` of its own, read and written.

MLX computes ``W x + scale · (x lora_a) lora_b`` with lora_a [in, r] and lora_b [r, out]: PEFT's factors
transposed, and a scale where PEFT has alpha / r. DoRA's magnitude is ``m``. In its config ``num_layers``
counts blocks from the last one, and ``keys`` are names inside a block, or of modules outside of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.faults import Faults, shown, some
from manylora.adapters.format.foreign.canonical import plain_number
from manylora.adapters.format.foreign.change import Change, LowRank
from manylora.adapters.format.foreign.names import Places, Rule, core
from manylora.adapters.format.weights.tensors import TensorFile

WEIGHTS = "adapters.safetensors"
_PARTS = ("lora_a", "lora_b", "m")
_BLOCK = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d{1,5})\.(.+)", re.DOTALL)
_OPTIONS = {"rank", "scale", "alpha", "dropout", "keys"}


def is_mlx(config: Mapping[str, Any]) -> bool:
    """Whether an ``adapter_config.json`` is MLX-LM's."""
    return "peft_type" not in config and ("fine_tune_type" in config or "lora_parameters" in config)


def read_mlx(
    config: Mapping[str, Any], file: TensorFile, base: BaseModel, faults: Faults
) -> tuple[Change, frozenset[Rule]] | None:
    """The adapter by the base's names; None, and a fault, where it can't be had."""
    settings = _settings(config, faults)
    found = _by_module(file, base, faults)
    if len(faults):
        return None
    rules = {Rule.MLX, Rule.TRANSPOSED}
    modules: dict[str, LowRank] = {}
    tables: dict[str, LowRank] = {}
    vocabulary = base.vocabulary
    for name, keys in found.items():
        part = _part(name, keys, file, settings, faults)
        if part is None:
            continue
        (tables if vocabulary is not None and name == vocabulary.embedding else modules)[name] = part
    _check_coverage(config, {*modules, *tables}, base, faults)
    if len(faults):
        return None
    options: dict[str, Any] = {}
    model = config.get("model")
    if isinstance(model, str) and model:
        options["base_model_name_or_path"] = model
    if tables and vocabulary is not None and vocabulary.tied:
        options["ensure_weight_tying"] = True  # MLX applies it where the embeddings are the output head, too
    order = [name for name in (*base.modules, *modules) if name in modules]
    return Change({name: modules[name] for name in order}, tables, options), frozenset(rules)


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the config says of all modules."""

    scale: float
    rank: int | None  # None: not said
    dora: bool


def _settings(config: Mapping[str, Any], faults: Faults) -> _Settings:
    kind = config.get("fine_tune_type", "lora")
    given = config.get("lora_parameters")
    if kind not in ("lora", "dora"):
        faults.add(f"fine_tune_type {shown(kind)} of MLX-LM is not served: only lora and dora are")
        return _Settings(1.0, None, False)
    if not isinstance(given, Mapping):
        faults.add(f"lora_parameters should be an object with rank and scale but is {shown(given)}")
        return _Settings(1.0, None, False)
    unknown = sorted(str(key) for key, value in given.items() if key not in _OPTIONS and value is not None)
    if unknown:
        faults.add(f"lora_parameters has {some(unknown, len(unknown))}, which this server does not know")
    rank, alpha = given.get("rank"), given.get("alpha")
    scale: Any = given.get("scale")
    if rank is not None and (type(rank) is not int or rank <= 0):
        faults.add(f"lora_parameters.rank should be a positive integer but is {shown(rank)}")
        rank = None
    if not _is_number(scale):
        faults.add(f"lora_parameters.scale should be a number but is {shown(scale)}")
        return _Settings(1.0, rank, kind == "dora")
    if alpha is not None and alpha != rank:
        faults.add(
            f"lora_parameters has alpha {shown(alpha)} beside scale: old versions of MLX-LM multiplied both, "
            "new ones leave alpha out. Take alpha out and write the scale that is meant"
        )
    return _Settings(float(scale), rank, kind == "dora")


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e30
        and math.isfinite(value)
    )


def _by_module(file: TensorFile, base: BaseModel, faults: Faults) -> dict[str, dict[str, str]]:
    """The base's modules with the keys of their parts."""
    places = Places(base)
    found: dict[str, dict[str, str]] = {}
    strays = []
    for key in file.infos:
        path, _, part = key.rpartition(".")
        place = places.find(path) if path and part in _PARTS else None
        if place is None:
            strays.append(key)
        elif part in found.setdefault(place[0], {}):
            faults.add(
                f"{shown(found[place[0]][part])} and {shown(key)} both are {part} of {shown(place[0])}"
            )
        else:
            found[place[0]][part] = key
    if strays:
        faults.add(
            f"unexpected tensors {some(strays, len(strays))}: not lora_a, lora_b or m of a linear layer of "
            f"{base.architecture}"
        )
    return found


def _part(
    name: str, keys: Mapping[str, str], file: TensorFile, settings: _Settings, faults: Faults
) -> LowRank | None:
    rank, dora = settings.rank, settings.dora
    wanted = {"lora_a", "lora_b"} | ({"m"} if dora else set())
    if keys.keys() != wanted:
        missing, more = sorted(wanted - keys.keys()), sorted(keys.keys() - wanted)
        what = (
            f"lacks {', '.join(missing)}"
            if missing
            else f"has {', '.join(more)}, and is no DoRA by its config"
        )
        faults.add(f"{shown(name)} {what}")
        return None
    if not all(file.can_read(key) for key in keys.values()):
        return None  # a fault already, by its type
    a, b = file.tensor(keys["lora_a"]), file.tensor(keys["lora_b"])
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or 0 in a.shape:
        faults.add(f"size mismatch: lora_a {list(a.shape)} and lora_b {list(b.shape)} of {shown(name)}")
        return None
    if rank is not None and a.shape[1] != rank:
        faults.add(f"rank of {shown(name)} is {a.shape[1]} in its tensors and {rank} in the config")
        return None
    m = file.tensor(keys["m"]) if dora else None
    if m is not None and m.shape != (b.shape[1],):
        faults.add(f"size mismatch for {shown(keys['m'])}: {list(m.shape)}, {[b.shape[1]]} is needed")
        return None
    return LowRank(a.T, b.T, settings.scale, m)


def _check_coverage(config: Mapping[str, Any], changed: set[str], base: BaseModel, faults: Faults) -> None:
    """Whether the tensors are of just those modules that the config names; MLX looks at no others."""
    layers, keys = config.get("num_layers", config.get("lora_layers")), config["lora_parameters"].get("keys")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        faults.add(f"lora_parameters.keys should be a list of names but is {shown(keys)}")
        return
    if layers is not None and type(layers) is not int:
        faults.add(f"num_layers should be an integer but is {shown(layers)}")
        return
    count = max((number for number, _ in _in_blocks(base.modules).values()), default=-1) + 1
    first = 0 if layers is None or layers <= 0 else max(count - layers, 0)
    places = _in_blocks(base.modules)
    outside = [name for name in changed if name in places and places[name][0] < first]
    if outside:
        listed = some(sorted(outside), len(outside))
        faults.add(f"num_layers is {layers}, and there are tensors of earlier blocks: {listed}")
    if keys is None:
        return
    known = set(keys)
    selected = {n for n, (number, rest) in places.items() if (rest in known and number >= first)}
    unasked = sorted(
        name for name in changed - selected if not {name, core(name), f"model.{core(name)}"} & known
    )
    missing = sorted(selected - changed)
    if unasked:
        faults.add(f"lora_parameters.keys does not name {some(unasked, len(unasked))}")
    if missing:
        faults.add(f"the config selects modules that have no tensors: {some(missing, len(missing))}")


def _in_blocks(modules: Iterable[str]) -> dict[str, tuple[int, str]]:
    """The number of the block and the name inside it, of the modules that are in one."""
    found = {name: _BLOCK.fullmatch(name) for name in modules}
    return {name: (int(match[1]), match[2]) for name, match in found.items() if match is not None}


def mlx_form(
    change: Change, base: BaseModel, model: str | None, faults: Faults
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and tensors of an adapter as MLX-LM reads them; what it has no place for is a fault."""
    parts = {**change.modules, **change.tables}
    for what, values in (
        ("rank", sorted({part.rank for part in parts.values()})),
        ("scale (alpha / r)", sorted({plain_number(part.scaling) for part in parts.values()})),
    ):
        if len(values) > 1:
            listed = ", ".join(f"{value:g}" for value in values[:4])
            faults.add(f"MLX-LM holds one {what} for all modules, and the adapter has several ({listed})")
    if any(part.b_bias is not None for part in parts.values()):
        faults.add("MLX-LM has no place for lora_bias")
    dora = {part.magnitude is not None for part in parts.values()}
    for option, value in change.options.items():
        if option == "alora_invocation_tokens" and value:
            faults.add("MLX-LM has no place for alora_invocation_tokens")
    places = _in_blocks(base.modules)
    count = max((number for number, _ in _in_blocks(base.modules).values()), default=-1) + 1
    first = min((places[name][0] for name in change.modules if name in places), default=0)
    keys = sorted({places[name][1] if name in places else mlx_name(name) for name in parts})
    some_part = next(iter(parts.values()), None)
    tensors = {}
    for name, part in parts.items():
        tensors[f"{mlx_name(name)}.lora_a"], tensors[f"{mlx_name(name)}.lora_b"] = part.a.T, part.b.T
        if part.magnitude is not None:
            tensors[f"{mlx_name(name)}.m"] = part.magnitude
    config = {
        "fine_tune_type": "dora" if True in dora else "lora",
        "num_layers": count - first,
        "lora_parameters": {
            "rank": 0 if some_part is None else some_part.rank,
            "scale": 0.0 if some_part is None else float(some_part.scaling),
            "dropout": 0.0,
            "keys": keys,
        },
    }
    return config | ({} if model is None else {"model": model}), tensors


def mlx_name(module: str) -> str:
    """What MLX-LM calls a module: its models all are ``model``, where others have names of their own."""
    return module if module == "lm_head" else f"model.{core(module)}"
