"""Names of tensors that mean harm, or nothing: read or refused, in little time, never a traceback."""

from __future__ import annotations

import random
from pathlib import Path
from time import process_time

import pytest
import torch

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.foreign.convert import convert
from tests.support.adapters import write_artifact
from tests.support.foreign_adapters import LIMITS, PREFIX, peft_adapter, read, tiny_base

PIECES = [
    "base_model", "model", "layers", "0", "1", "99999", "self_attn", "q_proj", "qkv_proj", "mlp", "up_proj",
    "lora_A", "lora_B", "lora_a", "lora_down", "lora_up", "weight", "bias", "alpha", "default", "module", "",
    "_orig_mod", "language_model", "decoder", "self_attention", "linear_qkv", "adapter", "linear_in",
    "dora_scale", "modules_to_save", "lm_head", "embed_tokens", "lora_embedding_A", "lora_magnitude_vector",
    "\u00e4", "\n", "x" * 50,
]  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> BaseModel:
    return tiny_base("llama")


def attempt(directory: Path, base: BaseModel) -> None:
    try:
        found = convert(directory, base, LIMITS)
        if found is not None:
            found.write(directory)
        read(directory, base)
    except ArtifactError:
        return


@pytest.mark.slow
def test_names_put_together_at_random(tmp_path: Path, llama: BaseModel) -> None:
    config, tensors = peft_adapter(tmp_path / "peft", llama, "llama")
    draw = random.Random(3)
    shapes = [(), (1,), (4,), (4, 32), (32, 4), (64, 4), (2, 2, 2), (0, 4), (32, 32)]
    for _ in range(150):
        given = dict(tensors)
        for key in draw.sample(list(given), 3):
            parts = key.split(".")
            parts[draw.randrange(len(parts))] = draw.choice(PIECES)
            given[".".join(parts)] = given.pop(key)
        for _ in range(draw.randint(0, 3)):
            name = ".".join(draw.choice(PIECES) for _ in range(draw.randint(1, 9)))
            given[name or "x"] = torch.ones(draw.choice(shapes))
        write_artifact(
            tmp_path / "in", config if draw.random() < 0.8 else {}, {k: t.clone() for k, t in given.items()}
        )
        attempt(tmp_path / "in", llama)


@pytest.mark.parametrize(
    "name",
    [
        "x." * 20_000 + "ia3_l.default",
        PREFIX * 2_000 + "model.layers.0.self_attn.q_proj.lora_A.weight",
        ".lora_A" * 5_000,
        ".lora_A.x" * 3_000 + ".weight",
        "model." * 5_000 + "layers.0.self_attn.qkv_proj.lora_A.weight",
        "lora_" * 5_000 + ".lora_down.weight",
    ],
)
def test_long_names_take_little_time(tmp_path: Path, llama: BaseModel, name: str) -> None:
    config, tensors = peft_adapter(tmp_path / "in", llama, "llama")
    write_artifact(tmp_path / "in", config, {**tensors, name: torch.ones(4, 32)})
    began = process_time()
    attempt(tmp_path / "in", llama)
    assert process_time() - began < 5
