"""Tiny random models of many families with a byte-level tokenizer: logic tests need no download."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB = 288  # 256 bytes, three specials, the rest never produced by the tokenizer

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": 256,
}

_GEMMA = {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 12}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.3,
    "logits_scaling": 0.4,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4 + [1.1] * 2,
    "long_factor": [1.0, 1.5, 2.0, 4.0, 6.0, 8.0],
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 128,
}

# By model type, or by the model type that they name; the first ones of a type are its plain form.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "llama-untied-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 24},
    "qwen2": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    "qwen3": {"head_dim": 32},
    "smollm3": {"no_rope_layers": [1, 0]},
    "phi3": {"original_max_position_embeddings": 512},
    "granite": _MULTIPLIERS,
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 24},
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "norm_topk_prob": False,
        "head_dim": 32,
    },
    "olmo2": {},
    "olmo3": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma": {"head_dim": 16},
    "gemma2": {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "gemma3": {
        **_GEMMA,
        "model_type": "gemma3_text",
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": {"rotary_pct": 0.25},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
}

# Of the fused decoder: further forms of rotary tables.
ROPES: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "longrope": _LONG,
}

FUSED_FAMILIES = tuple(name for name in FAMILIES if name not in ("gpt2", "gpt_neox", "opt"))
EXPERT_FAMILIES = ("mixtral", "qwen3_moe")
DENSE_FAMILIES = tuple(name for name in FUSED_FAMILIES if name not in EXPERT_FAMILIES)

# Families that costly tests go through in the long run only: others, of the same features, stand for them.
_SELDOM = ("smollm3", "granite", "mixtral", "qwen3_moe", "olmo2", "olmo3", "gemma")


def seldom(family: str, *, fused: bool = True) -> tuple[pytest.MarkDecorator, ...]:
    """The marks of a costly test of a family."""
    often = family not in _SELDOM and not (fused and family == "gemma3")
    return () if often else (pytest.mark.sweep,)


def costly(families: Iterable[str], *, fused: bool = True) -> list[Any]:
    """The families as parameters of a costly test."""
    return [pytest.param(family, marks=seldom(family, fused=fused)) for family in families]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, ``<pad>``, ``<|im_start|>`` (bos) and ``<|im_end|>`` (eos)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(directory: Path, family: str = "llama", *, seed: int = 0, **overrides: Any) -> Path:
    """Write a tiny random float32 model and its tokenizer to ``directory`` and return it.

    Weights are drawn wide enough that greedy text varies and logits differ clearly between adapters.
    """
    settings = {**_COMMON, **FAMILIES[family], **overrides}
    model_type = settings.pop("model_type", family)
    config = AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
            elif parameter.abs().max() == 0:  # biases, and Gemma's norms that add one
                torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory
