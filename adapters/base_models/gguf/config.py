"""The transformers config of a model in a GGUF file, from the file's metadata."""

from __future__ import annotations

import math
from typing import Any

import torch

from manylora.adapters.base_models.gguf.architectures import IDLE_KEYS, KNOWN_KEYS
from manylora.adapters.base_models.gguf.file import GgufModel
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.faults import shown

# Llama 3.1 and its successors: the file has the factors, transformers wants what they were made from.
_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_CLOSE = 1e-5  # between factors that are the same, stored in float32


def model_config(model: GgufModel) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        BaseModelError: something is missing, contradicts itself, or is not known.
    """
    architecture, heads = model.architecture, model.number("attention.head_count")
    _check_keys(model)
    width = model.number("embedding_length")
    head_dim = _head_dim(model, width, heads)
    embedding = model.tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise BaseModelError(f"{model.name} has no token_embd.weight")
    config: dict[str, Any] = {
        "architectures": [architecture.causal_lm],
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": model.number("feed_forward_length"),
        "num_hidden_layers": model.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _optional(model, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": model.number("context_length"),
        "rms_norm_eps": _positive(model, "attention.layer_norm_rms_epsilon", None),
        "rope_parameters": _rope(model, head_dim),
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in model.tensors,
        "dtype": "bfloat16",
        **token_ids(model),
    }
    if architecture.model_type == "llama":
        config["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in model.tensors
        config["mlp_bias"] = "model.layers.0.mlp.up_proj.bias" in model.tensors
    return config


def token_ids(model: GgufModel) -> dict[str, Any]:
    """The tokens that begin, end and fill up a text, as ``generation_config.json`` has them."""
    kinds = {"bos": ("bos",), "eos": ("eos", "eot"), "pad": ("padding",)}
    found: dict[str, Any] = {}
    for kind, names in kinds.items():
        ids = [model.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names]
        known = list(dict.fromkeys(token for token in ids if type(token) is int))
        if known:
            found[f"{kind}_token_id"] = known[0] if len(known) == 1 else known
    return found


def _check_keys(model: GgufModel) -> None:
    """Refuse what would be left out of account."""
    prefix = f"{model.architecture.name}."
    for key, value in model.metadata.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in KNOWN_KEYS or (name in IDLE_KEYS and not value):
            continue
        raise BaseModelError(
            f"{model.name}: {key} = {shown(value)} is not taken into account, so it is not read"
        )


def _head_dim(model: GgufModel, width: int, heads: int) -> int:
    size = _optional(model, "attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (found := _optional(model, key, size)) != size:
            raise BaseModelError(
                f"{model.name}: {model.architecture.name}.{key} is {found}, and heads have {size} dimensions"
            )
    return size


def _rope(model: GgufModel, head_dim: int) -> dict[str, Any]:
    theta = _positive(model, "rope.freq_base", 10000.0)
    kind = model.metadata.get(f"{model.architecture.name}.rope.scaling.type", "none")
    factors = model.rope_factors()
    if factors is not None and kind == "none":
        return {"rope_theta": theta, **_llama3(model, factors, theta, head_dim)}
    if kind == "linear" and factors is None:
        return {
            "rope_type": "linear",
            "rope_theta": theta,
            "factor": _positive(model, "rope.scaling.factor", None),
        }
    if kind != "none":
        raise BaseModelError(
            f"{model.name}: architecture {model.architecture.name!r} with RoPE scaling {shown(kind)} is not "
            "read"
        )
    return {"rope_type": "default", "rope_theta": theta}


def _llama3(model: GgufModel, factors: torch.Tensor, theta: float, head_dim: int) -> dict[str, Any]:
    factor = float(factors.max())
    wanted = {**_LLAMA3, "factor": factor}
    expected = _llama3_factors(theta, head_dim, factor)
    if len(factors) != len(expected) or not torch.allclose(factors.double(), expected, rtol=_CLOSE, atol=0):
        raise BaseModelError(
            f"{model.name}: its rope_freqs.weight are not the factors of Llama 3, and not read"
        )
    return wanted


def _llama3_factors(theta: float, head_dim: int, factor: float) -> torch.Tensor:
    """By how much Llama 3 divides each rotary frequency [hd / 2] float64."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    wavelengths = 2 * math.pi * theta**exponents
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    turns = _LLAMA3["original_max_position_embeddings"] / wavelengths
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    factors: torch.Tensor = 1 / ((1 - smooth) / factor + smooth)
    return factors


def _optional(model: GgufModel, key: str, otherwise: int) -> int:
    return model.number(key) if f"{model.architecture.name}.{key}" in model.metadata else otherwise


def _positive(model: GgufModel, key: str, otherwise: float | None) -> float:
    value = model.metadata.get(f"{model.architecture.name}.{key}", otherwise)
    if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
        raise BaseModelError(
            f"{model.name}: {model.architecture.name}.{key} is {shown(value)}, not a positive number"
        )
    return value
