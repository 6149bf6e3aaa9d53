"""Models of random weights, with the shapes of real families at some 140 to 180 million parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.gpu_check.base import tokenizer

_SHARED: dict[str, Any] = {
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": 256,
}

# By name: the settings of a transformers config, "model_type" among them.
MODELS: Mapping[str, Mapping[str, Any]] = {
    "gemma3": {  # the layers of Gemma 3 270M, and a quarter of its vocabulary
        "model_type": "gemma3_text",
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 65536,
        "sliding_window": 512,
    },
    "qwen3_moe": {  # 4 of 32 experts a token
        "model_type": "qwen3_moe",
        "hidden_size": 512,
        "intermediate_size": 1536,
        "moe_intermediate_size": 256,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 32768,
    },
}


def write_model(directory: Path, name: str, **changed: object) -> int:
    """Write a model of :data:`MODELS` in bf16, with ``changed`` settings; returns its parameters."""
    settings = {**_SHARED, **MODELS[name], **changed}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer(config.vocab_size).save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())
