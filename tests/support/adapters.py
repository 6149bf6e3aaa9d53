"""Adapters for tests: PEFT directories that PEFT itself loads, with random A and B."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from manylora.adapters.base_models.layers import describe_cache, describe_vocabulary, target_of
from manylora.adapters.base_models.norms import is_norm
from manylora.adapters.format.base import BaseModel, TargetModule
from manylora.adapters.format.config.config import parse_config
from manylora.adapters.format.config.targets import select_targets
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.format.kinds.table import KINDS_OF_UPDATES
from manylora.adapters.format.weights.expected_tensors import lay_out


def base_model_of(model: nn.Module, name: str = "base") -> BaseModel:
    """What adapters need to know about a Hugging Face causal LM; a model on the meta device will do."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    modules: dict[str, TargetModule] = {}
    norms: dict[str, TargetModule] = {}
    others = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            bias = module.bias is not None
            modules[path] = TargetModule(path, module.in_features, module.out_features, bias)
        elif isinstance(module, Conv1D):
            modules[path] = TargetModule(
                path, module.weight.shape[0], module.weight.shape[1], True, transposed=True
            )
        elif is_norm(module):
            norms[path] = target_of(path, module)
        elif path:
            others.append(path)
    config: Any = model.config
    return BaseModel(
        name=name,
        architecture=type(model).__name__,
        model_type=config.model_type,
        fingerprint=f"{zlib.crc32(repr(sorted(modules)).encode()):08x}",
        modules=modules,
        others=frozenset({*others, *norms}),
        norms=norms,
        vocabulary=describe_vocabulary(model),
        cache=describe_cache(config),
    )


def base_of_directory(directory: Path) -> BaseModel:
    """What adapters need to know about the model in a directory, whose weights are not read."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    return base_model_of(model, str(directory))


def lora_config(
    *,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] | str = ("q_proj", "v_proj"),
    rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """An ``adapter_config.json`` as PEFT writes it, with ``options`` over it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "use_rslora": rslora,
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": dict(alpha_pattern or {}),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        **options,
    }


def lora_tensors(
    base: BaseModel,
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    scale: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Random tensors for every module that ``config`` selects: A and B from ±``scale``, see also _RANGES."""
    faults = Faults()
    parsed = parse_config(config, faults, KINDS_OF_UPDATES)
    targets = select_targets(parsed, base, faults) if parsed is not None else None
    if parsed is None or targets is None:  # refused options do not matter here: tests need them too
        faults.raise_any()
    assert parsed is not None
    assert targets is not None
    generator = torch.Generator().manual_seed(seed)
    layout = lay_out(parsed, targets, base, faults)
    if layout is None:
        faults.raise_any()
    assert layout is not None
    tensors = {}
    for parts in (*layout.modules.values(), layout.shared):
        for part, slot in parts.items():
            low, high = _RANGES.get(part, (-scale, scale)) if parts is not layout.shared else (-0.3, 0.3)
            values = torch.rand(slot.shape, generator=generator) * (high - low) + low
            tensors[slot.key] = (
                torch.zeros(slot.shape, dtype=torch.uint8) if slot.integers else values.to(dtype)
            )
    return tensors


# Of the parts that are not A or B. A row of a tiny model's weights has a norm of about 1.2.
_RANGES = {
    "magnitude": (0.8, 1.8),
    "scale": (0.5, 1.5),
    "bias": (-0.3, 0.3),
    "b_bias": (-0.3, 0.3),
    "output_scale": (0.5, 1.5),
    "input_scale": (0.5, 1.5),
    "b_scale": (-0.5, 0.5),
    "a_scale": (-0.5, 0.5),
}


def write_kind(directory: Path, base: Path | BaseModel, *, seed: int = 0, **config: Any) -> Path:
    """Write an adapter of any kind with random tensors: ``config`` is all of its config but the obvious."""
    model = base_of_directory(base) if isinstance(base, Path) else base
    full = {"task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "inference_mode": True, **config}
    return write_artifact(directory, full, lora_tensors(model, full, seed=seed, scale=0.15))


def write_artifact(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write both files of an artifact, valid or not."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_NAME).write_text(json.dumps(config))
    save_file(dict(tensors), directory / WEIGHTS_NAME, metadata={"format": "pt"})
    return directory


def write_adapter(
    directory: Path,
    base: Path | BaseModel,
    *,
    rank: int = 8,
    alpha: float = 16,
    targets: Sequence[str] | str = ("q_proj", "v_proj"),
    rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    seed: int = 0,
    scale: float = 0.1,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Path:
    """Write a PEFT adapter for ``base`` (or the model in that directory) to ``directory``, and return it.

    B is random as well, so the adapter changes the logits. ``targets`` may be "all-linear", a regular
    expression or module names; ``options`` are further keys of the config.
    """
    model = base_of_directory(base) if isinstance(base, Path) else base
    config = lora_config(
        rank=rank,
        alpha=alpha,
        targets=targets,
        rslora=rslora,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        **options,
    )
    return write_artifact(directory, config, lora_tensors(model, config, seed=seed, scale=scale, dtype=dtype))
