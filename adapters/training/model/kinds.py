"""PEFT's configuration of an adapter of any kind but LoRA, from the trainer's options."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers.pytorch_utils import Conv1D

from manylora.adapters.base_models.norms import norms_of
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.errors import TrainingConfigError
from manylora.adapters.training.methods import PROMPTS
from manylora.adapters.training.model.targets import has_conv1d, linear_layers, targets

_ALPHAS = ("lora_alpha", "alpha")
_WITHOUT_RANK = ("oft",)  # its r is the number of blocks, which excludes their size
_VIRTUAL_TOKENS = 20
_PLACEHOLDER_STEPS = 1_000_000  # of AdaLoRA, before the number of steps is known


def kind_config(model: Any, config: TrainConfig) -> PeftConfig:
    """PEFT's configuration for ``config.method``: common options, further ones, and PEFT's defaults.

    Raises:
        TrainingConfigError: an option that the kind does not have, or a value that PEFT refuses.
    """
    maker = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[config.method.upper()]]
    defaults = {field.name: _default(field) for field in dataclasses.fields(maker)}
    values = _fitted(model, config.method) | _common(model, config, defaults)
    values |= _further(maker, config)
    values["task_type"] = config.task_type
    try:
        return maker(**values)
    except (TypeError, ValueError) as error:
        raise TrainingConfigError(f"--method {config.method}: {error}") from error


def _default(field: dataclasses.Field[Any]) -> object:
    return None if field.default is dataclasses.MISSING else field.default


def _common(model: Any, config: TrainConfig, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What the trainer's own options say, in the fields that the kind has for it."""
    values = _rank_and_alpha(config, defaults)
    asked = {
        _dropout_field(defaults): ("lora_dropout", config.lora_dropout),
        "rank_pattern": ("rank_pattern", dict(config.rank_pattern)),
        "alpha_pattern": ("alpha_pattern", dict(config.alpha_pattern)),
        "modules_to_save": ("modules_to_save", list(config.modules_to_save)),
    }
    for field, (option, value) in asked.items():
        if value and field not in defaults:
            raise _absent(config, option)
        if value and field is not None:
            values[field] = value
    if "fan_in_fan_out" in defaults:
        values["fan_in_fan_out"] = has_conv1d(model)
    if "target_modules" in defaults:
        return values | {"target_modules": _targets(model, config)}
    if "target_modules" in config.model_fields_set:
        raise _absent(config, "target_modules")
    return values


def _rank_and_alpha(config: TrainConfig, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Rank and alpha where they are given; a rank alone keeps the scaling that PEFT's defaults have."""
    values: dict[str, Any] = {}
    alpha = next((name for name in _ALPHAS if name in defaults), None)
    if "lora_r" in config.model_fields_set:
        if "r" not in defaults or config.method in _WITHOUT_RANK:
            raise _absent(config, "lora_r")
        values["r"] = rank = config.lora_r
        if "init_r" in defaults:  # AdaLoRA prunes from half as much again, as in its paper
            values |= {"target_r": rank, "init_r": (rank := math.ceil(1.5 * rank))}
        if alpha is not None:
            values[alpha] = max(1, round(defaults[alpha] / (defaults.get("init_r") or defaults["r"]) * rank))
    if config.lora_alpha is not None:
        if alpha is None:
            raise _absent(config, "lora_alpha")
        values[alpha] = int(config.alpha) if config.alpha.is_integer() else config.alpha
    return values


def _absent(config: TrainConfig, option: str) -> TrainingConfigError:
    return TrainingConfigError(f"--{option.replace('_', '-')}: method {config.method} has no such thing")


def _dropout_field(fields: Mapping[str, Any]) -> str | None:
    """The field of a kind's dropout of inputs, or of the modules where it has none of inputs."""
    found = sorted(name for name in fields if name.endswith("dropout") and name != "rank_dropout")
    return next((name for name in found if name != "module_dropout"), found[0] if found else None)


def _targets(model: Any, config: TrainConfig) -> Any:
    given = "target_modules" in config.model_fields_set
    if config.method == "trainable_tokens":
        return list(config.target_modules) if given else None
    if config.method != "ln_tuning":
        return targets(model, config.target_modules)
    norms = [*norms_of(model)]
    wanted = config.target_modules if given else tuple(norms)
    for name in wanted:
        if not any(norm == name or norm.endswith(f".{name}") for norm in norms):
            ends = ", ".join(sorted({norm.rpartition(".")[2] for norm in norms}))
            raise TrainingConfigError(f"--target-modules {name}: no norm is called that; there are {ends}")
    return list(wanted)


def _fitted(model: Any, method: str) -> dict[str, Any]:
    """Where PEFT's default fits some models only, one that fits this model."""
    widths = [_widths(layer) for layer in linear_layers(model).values()]
    every = math.gcd(*(width for pair in widths for width in pair))
    outputs = math.gcd(*(out for _, out in widths))
    weights = min(inputs * out for inputs, out in widths)  # of the smallest matrix
    fitted: Mapping[str, dict[str, Any]] = {
        "adalora": {"total_step": _PLACEHOLDER_STEPS},
        "c3a": {"block_size": _divisor(every, 256)},
        "fourierft": {"n_frequency": min(1000, weights)},
        "ia3": {"feedforward_modules": []},
        "oft": {"oft_block_size": _divisor(every, 32)},
        "road": {"group_size": _divisor(outputs, 64)},
        "shira": {"r": max(1, min(32, *(inputs * out // (inputs + out) for inputs, out in widths)))},
        "vblora": {"vector_length": _divisor(every, 256)},
        "waveft": {"n_frequency": min(2592, weights)},
    }
    return {"num_virtual_tokens": _VIRTUAL_TOKENS} if method in PROMPTS else fitted.get(method, {})


def _divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` up to ``most``."""
    return next(n for n in range(min(number, most), 0, -1) if number % n == 0)


def _widths(layer: Any) -> tuple[int, int]:
    """in, out."""
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[0]), int(layer.weight.shape[1])
    return layer.in_features, layer.out_features


def _further(maker: Any, config: TrainConfig) -> dict[str, Any]:
    """The options given by ``method_options``, as the types that PEFT's config has for them."""
    hints = typing.get_type_hints(maker)
    found: dict[str, Any] = {}
    for key, text in config.method_option.items():
        if key not in hints:
            raise TrainingConfigError(f"--method-option {key}: the installed PEFT has no such option")
        try:
            adapter = TypeAdapter(hints[key], config=ConfigDict(arbitrary_types_allowed=True))
            found[key] = adapter.validate_python(_value(text))
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise TrainingConfigError(f"--method-option {key}={text}: {reason}") from error
    return found


def _value(text: object) -> object:
    """What a text stands for: JSON where it is some, else itself."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
