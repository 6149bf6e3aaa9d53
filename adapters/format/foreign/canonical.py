"""Writing PEFT's form of an adapter: one order, one spelling, so that equal content has one digest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.config.targets import names_meaning
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.format.foreign.change import Change, LowRank
from manylora.adapters.format.foreign.names import PREFIX, Part
from manylora.adapters.format.saving import save_tensors

_METADATA = {"format": "pt"}  # what PEFT writes


def write_files(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write both files of an artifact, over what is there.

    Raises:
        OSError: the disk refused.
    """
    plain = {name: tensors[name].contiguous().clone() for name in sorted(tensors)}  # views of one file
    save_tensors(plain, directory / WEIGHTS_NAME, _METADATA)
    (directory / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def config_of(change: Change, base: BaseModel) -> dict[str, Any]:
    """``adapter_config.json`` of a change by LoRA or DoRA."""
    parts = {**change.modules, **change.tables}
    ranks = {name: part.rank for name, part in parts.items()}
    alphas = {name: plain_number(part.scaling * part.rank) for name, part in parts.items()}
    rank, alpha = _commonest(ranks.values(), 8), _commonest(alphas.values(), 8)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        **change.options,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": names_meaning(parts, [*base.modules, *base.others]),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "use_rslora": False,
        "use_dora": any(part.magnitude is not None for part in parts.values()),
        "lora_bias": any(part.b_bias is not None for part in parts.values()),
    }


def tensors_of(change: Change) -> dict[str, torch.Tensor]:
    """The tensors of a change under PEFT's names."""
    tensors = dict(change.others)
    for name, part in change.modules.items():
        tensors |= _factors(name, part, Part.A, Part.B)
    for name, part in change.tables.items():
        tensors |= _factors(name, part, Part.EMBEDDING_A, Part.EMBEDDING_B)
    return tensors


def _factors(name: str, part: LowRank, a: Part, b: Part) -> dict[str, torch.Tensor]:
    found = {a: part.a, b: part.b, Part.MAGNITUDE: part.magnitude, Part.B_BIAS: part.b_bias}
    return {f"{PREFIX}{name}.{ending}": tensor for ending, tensor in found.items() if tensor is not None}


def plain_number(value: float) -> float | int:
    """A product of a division and its divisor as what it was before: 16.000000000000004 is 16."""
    rounded = float(f"{value:.12g}")
    return int(rounded) if rounded.is_integer() else rounded


def _commonest(values: Iterable[Any], otherwise: Any) -> Any:
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else otherwise
