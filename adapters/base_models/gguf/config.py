"""The transformers config of a model in a GGUF file, from the file's metadata."""

from __future__ import annotations

from typing import Any

from manylora.adapters.base_models.gguf.architectures import IDLE_KEYS, KNOWN_KEYS
from manylora.adapters.base_models.gguf.file import GgufModel
from manylora.adapters.base_models.gguf.rope import rope_parameters
from manylora.adapters.base_models.gguf.settings import further_settings
from manylora.adapters.base_models.gguf.tokenizer import CONTROL
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.faults import shown

# Ends of a turn, which files often have beside the end of a text and do not name: llama.cpp knows them by
# their text as well.
_TURN_ENDS = frozenset(["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"])


def model_config(model: GgufModel) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        BaseModelError: something is missing, contradicts itself, or is not known.
    """
    architecture, heads = model.architecture, model.number("attention.head_count")
    _check_keys(model)
    _check_layers(model)
    width = model.number("embedding_length")
    head_dim = _optional(model, "attention.key_length", width // heads)
    if head_dim < 1:
        raise model.fault("attention.head_count", f"and the model is {width} wide")
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
        "rms_norm_eps": model.positive("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope_parameters(model, _turning(model, head_dim)),
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in model.tensors,
        "dtype": "bfloat16",
        **token_ids(model),
    }
    return config | further_settings(model, config)


def token_ids(model: GgufModel) -> dict[str, Any]:
    """The tokens that begin, end and fill up a text, as ``generation_config.json`` has them."""
    kinds = {"bos": ("bos",), "eos": ("eos", "eot", "eom"), "pad": ("padding",)}
    found: dict[str, Any] = {}
    for kind, names in kinds.items():
        ids = [model.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names]
        if kind == "eos":
            ids += _turn_ends(model)
        known = list(dict.fromkeys(token for token in ids if type(token) is int))
        if known:
            found[f"{kind}_token_id"] = known[0] if len(known) == 1 else known
    return found


def _turn_ends(model: GgufModel) -> list[int]:
    tokens, types = (model.metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if not isinstance(tokens, list) or not isinstance(types, list):
        return []  # which the tokenizer is refused for
    return [
        index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if token in _TURN_ENDS and kind == CONTROL
    ]


def _check_keys(model: GgufModel) -> None:
    """Refuse what would be left out of account."""
    prefix, known = f"{model.architecture.name}.", KNOWN_KEYS | model.architecture.keys
    for key, value in model.metadata.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in known or (name in IDLE_KEYS and not value):
            continue
        raise BaseModelError(
            f"{model.name}: {key} = {shown(value)} is not taken into account, so it is not read"
        )


def _check_layers(model: GgufModel) -> None:
    """Refuse another count of layers than there are, before anything is made of that length."""
    there = {name.split(".")[2] for name in model.tensors if name.startswith("model.layers.")}
    if model.number("block_count") != len(there):
        raise model.fault("block_count", f"and the file has tensors of {len(there)} layers")


def _turning(model: GgufModel, head_dim: int) -> int:
    """How many of a head's dimensions the rotary embedding turns."""
    if _optional(model, "attention.value_length", head_dim) != head_dim:
        raise model.fault("attention.value_length", f"and keys have {head_dim} dimensions")
    turning, partly = _optional(model, "rope.dimension_count", head_dim), model.architecture.turns_partly
    if turning != head_dim and not (partly and turning < head_dim and turning % 2 == 0):
        raise model.fault("rope.dimension_count", f"and heads have {head_dim} dimensions")
    return turning


def _optional(model: GgufModel, key: str, otherwise: int) -> int:
    return otherwise if model.value(key) is None else model.number(key)
