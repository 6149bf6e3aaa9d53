"""Adapters on routed experts, under both names that these have had."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

OLDER = {
    "mixtral": (
        "model.layers.{}.block_sparse_moe.experts.{}.",
        {"w1": (48, 64), "w3": (48, 64), "w2": (64, 48)},
    ),
    "qwen3_moe": (
        "model.layers.{}.mlp.experts.{}.",
        {"gate_proj": (48, 64), "up_proj": (48, 64), "down_proj": (64, 48)},
    ),
}


def write_stacked(path: Path, model: Path, options: dict[str, Any], rank: int = 4, seed: int = 0) -> Path:
    """A LoRA that PEFT puts on the stacked weights of experts, as ``options`` say; returns ``path``."""
    torch.manual_seed(seed)
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, init_lora_weights=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on targets
        get_peft_model(base, config).save_pretrained(path)
    return path


def write_older(path: Path, model: Path, family: str, experts: int, layers: int = 2) -> Path:
    """An adapter on the linear layers that experts were before transformers 5, beside one on attention."""
    (place, sizes), rank = OLDER[family], 3
    generator = torch.Generator().manual_seed(3)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[*sizes, "q_proj"], task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(model)
    config.save_pretrained(path)
    names = [
        place.format(layer, e) + name for layer in range(layers) for e in range(experts) for name in sizes
    ]
    shapes = {name: sizes[name.rpartition(".")[2]] for name in names}
    shapes |= {f"model.layers.{layer}.self_attn.q_proj": _size_of_q(model) for layer in range(layers)}
    tensors = {}
    for name, (out, width) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = 0.3 * torch.randn(
            rank, width, generator=generator
        )
        tensors[f"base_model.model.{name}.lora_B.weight"] = 0.3 * torch.randn(out, rank, generator=generator)
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    return path


def _size_of_q(model: Path) -> tuple[int, int]:
    config = json.loads((model / "config.json").read_text())
    heads = config["num_attention_heads"]
    return heads * (config.get("head_dim") or config["hidden_size"] // heads), config["hidden_size"]
