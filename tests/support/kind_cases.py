"""Valid adapters of the kinds beyond plain LoRA, and changes that break them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Artifact, Limits, read_artifact
from manylora.adapters.format.base import TargetModule
from tests.support.adapters import lora_config, lora_tensors, write_artifact
from tests.support.artifact_cases import BASE as PLAIN
from tests.support.artifact_cases import LIMITS, PREFIX, Tensors

NORM = "model.layers.0.norm"
BASE = replace(
    PLAIN,
    modules={n: replace(m, bias=not n.endswith("v_proj")) for n, m in PLAIN.modules.items()},
    norms={NORM: TargetModule(NORM, 8, 8, bias=True, linear=False)},
    others=PLAIN.others | {NORM},
)
Q, V = f"{PREFIX}.0.q_proj", f"{PREFIX}.0.v_proj"
LAYER = "model.layers.0"
Config = dict[str, Any]
Change = Callable[[Config, Tensors], None]

CONFIGS: dict[str, Config] = {
    "dora": lora_config(rank=4, use_dora=True),
    "lora_bias": lora_config(rank=4, lora_bias=True),
    "lora_only": lora_config(rank=4, bias="lora_only"),
    "all": lora_config(rank=4, bias="all"),
    "ia3": {
        "peft_type": "IA3",
        "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "up_proj"],
        "feedforward_modules": ["up_proj"],
        "fan_in_fan_out": False,
        "init_ia3_weights": True,
        "modules_to_save": None,
    },
    "vera": {"peft_type": "VERA", "task_type": "CAUSAL_LM", "r": 6, "target_modules": ["q_proj", "up_proj"]},
    "vera_seed": {
        "peft_type": "VERA",
        "r": 6,
        "target_modules": ["q_proj", "up_proj"],
        "save_projection": False,
        "projection_prng_key": 7,
    },
}

FURTHER: dict[str, Config] = {
    "adalora": {
        "peft_type": "ADALORA",
        "init_r": 4,
        "rank_pattern": {f"{LAYER}.q_proj.lora_E": [1, 0, 1, 0]},
    },
    "bone": {"peft_type": "BONE", "r": 4},
    "delora": {"peft_type": "DELORA", "r": 3, "rank_pattern": {"up_proj": 2}},
    "gralora": {"peft_type": "GRALORA", "r": 4, "gralora_k": 4, "hybrid_r": 1},
    "hra": {"peft_type": "HRA", "r": 3},
    "hra_gs": {"peft_type": "HRA", "r": 3, "apply_GS": True},
    "loha": {"peft_type": "LOHA", "r": 2, "alpha": 4, "rank_pattern": {"up_proj": 3}},
    "lokr": {"peft_type": "LOKR", "r": 1, "decompose_both": True},
    "miss": {"peft_type": "MISS", "r": 3},
    "miss_bat": {"peft_type": "MISS", "r": 4, "init_weights": "bat"},
    "miss_mini": {"peft_type": "MISS", "r": 3, "init_weights": "mini", "mini_r": 4},
    "poly": {"peft_type": "POLY", "r": 3, "n_skills": 3, "n_splits": 2},
    "pvera": {"peft_type": "PVERA", "r": 5},
    "pvera_seed": {"peft_type": "PVERA", "r": 5, "save_projection": False},
    "tinylora": {"peft_type": "TINYLORA", "r": 2, "u": 3, "weight_tying": 0.5},
    "tinylora_seed": {"peft_type": "TINYLORA", "r": 2, "u": 3, "save_projection": False},
    "unilora": {"peft_type": "UNILORA", "r": 2, "theta_d_length": 9},
    "unilora_saved": {"peft_type": "UNILORA", "r": 2, "theta_d_length": 9, "save_indices": True},
    "vblora": {"peft_type": "VBLORA", "r": 2, "num_vectors": 5, "vector_length": 4},
    "vblora_top": {
        "peft_type": "VBLORA",
        "r": 2,
        "num_vectors": 5,
        "vector_length": 4,
        "save_only_topk_weights": True,
    },
}
CONFIGS |= {name: {"target_modules": ["q_proj", "up_proj"], **config} for name, config in FURTHER.items()}


def valid(kind: str) -> tuple[Config, Tensors]:
    config = dict(CONFIGS[kind])
    return config, lora_tensors(BASE, config, seed=3)


def read(directory: Path, kind: str, *changes: Change, limits: Limits = LIMITS) -> Artifact:
    config, tensors = valid(kind)
    for change in changes:
        change(config, tensors)
    return read_artifact(write_artifact(directory, config, tensors), BASE, limits)


def faults_of(directory: Path, kind: str, *changes: Change, limits: Limits = LIMITS) -> tuple[str, ...]:
    with pytest.raises(ArtifactError) as error:
        read(directory, kind, *changes, limits=limits)
    return error.value.faults


def put(key: str, tensor: torch.Tensor) -> Change:
    def change(config: Config, tensors: Tensors) -> None:
        tensors[key] = tensor

    return change


def drop(*keys: str) -> Change:
    def change(config: Config, tensors: Tensors) -> None:
        for key in keys:
            del tensors[key]

    return change


def fill(ending: str, value: float) -> Change:
    def change(config: Config, tensors: Tensors) -> None:
        for key, tensor in tensors.items():
            if key.endswith(ending):
                tensor.fill_(value)

    return change


def poison(key: str) -> Change:
    def change(config: Config, tensors: Tensors) -> None:
        tensors[key].view(-1)[1] = math.nan

    return change


def set_key(key: str, value: object) -> Change:
    def change(config: Config, tensors: Tensors) -> None:
        config[key] = value

    return change
