"""A small base and a valid adapter for it, for the tests of validation to break."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.artifact import Limits, read_artifact
from manylora.adapters.format.base import BaseModel, TargetModule
from manylora.adapters.format.faults import MAX_FAULTS, MAX_SENTENCE
from manylora.adapters.format.files import WEIGHTS_NAME
from tests.support.adapters import lora_config, lora_tensors

Tensors = dict[str, torch.Tensor]
Change = Callable[[dict[str, Any], Tensors], None]

LIMITS = Limits(max_rank=64, max_bytes=1 << 20)
SHAPES = {"q_proj": (8, 8), "v_proj": (8, 4), "up_proj": (8, 12)}  # in, out
BASE = BaseModel(
    name="base",
    architecture="LlamaForCausalLM",
    model_type="llama",
    fingerprint="0",
    modules={
        f"model.layers.{layer}.{name}": TargetModule(f"model.layers.{layer}.{name}", *shape)
        for layer in range(2)
        for name, shape in SHAPES.items()
    },
    others=frozenset({"model", "model.embed_tokens", "model.norm", "model.layers", "lm_head"}),
)
PREFIX = "base_model.model.model.layers"
Q_A, Q_B = f"{PREFIX}.0.q_proj.lora_A.weight", f"{PREFIX}.0.q_proj.lora_B.weight"
HOSTILE = "x" * 100_000


def valid() -> tuple[dict[str, Any], Tensors]:
    config = lora_config(rank=4)
    return config, lora_tensors(BASE, config)


def faults_of(directory: Path, limits: Limits = LIMITS) -> tuple[str, ...]:
    with pytest.raises(ArtifactError) as error:
        read_artifact(directory, BASE, limits)
    str(error.value).encode()  # can be put into an answer
    assert all(len(fault) <= MAX_SENTENCE + 1 for fault in error.value.faults)
    assert len(error.value.faults) <= MAX_FAULTS + 1
    return error.value.faults


def write_raw(directory: Path, header: object, data: bytes = b"") -> Path:
    directory.mkdir(exist_ok=True)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (directory / WEIGHTS_NAME).write_bytes(struct.pack("<Q", len(text)) + text + data)
    return directory
