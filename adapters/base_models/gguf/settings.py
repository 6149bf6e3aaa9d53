"""What families beyond Llama add to transformers' configuration: a function for each architecture.

What a file does not say, llama.cpp knows by the architecture; the same is taken here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from manylora.adapters.base_models.gguf.file import GgufModel
from manylora.adapters.errors import BaseModelError
from manylora.adapters.format.faults import shown

_GELU = "gelu_pytorch_tanh"
_SLIDING, _FULL = "sliding_attention", "full_attention"
# Layers of the models whose queries are scaled by their width for each head, not by a head's dimensions.
_GEMMA2_27B, _GEMMA3_27B = 46, 62
_GEMMA2_WINDOW = 4096  # of files from before the converter wrote it


def further_settings(model: GgufModel, config: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of ``config.json`` that are added to ``config``, or replace what is there.

    Raises:
        BaseModelError: something is missing, contradicts itself, or is not known.
    """
    settings = _SETTINGS.get(model.architecture.name)
    return settings(model, config) if settings is not None else {}


def _llama(model: GgufModel, _config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in model.tensors,
        "mlp_bias": "model.layers.0.mlp.up_proj.bias" in model.tensors,
    }


def _granite(model: GgufModel, config: Mapping[str, Any]) -> dict[str, Any]:
    if model.value("rope.scaling.finetuned") is False:  # says for this architecture that nothing turns
        raise BaseModelError(f"{model.name}: a Granite without rotary embedding is not read")
    return _llama(model, config) | {
        "attention_multiplier": model.positive("attention.scale", config["head_dim"] ** -0.5),
        "embedding_multiplier": model.positive("embedding_scale", 1.0),
        "residual_multiplier": model.positive("residual_scale", 1.0),
        "logits_scaling": model.positive("logit_scale"),
    }


def _phi3(model: GgufModel, config: Mapping[str, Any]) -> dict[str, Any]:
    rope = dict(config["rope_parameters"])
    if rope["rope_type"] not in ("default", "longrope"):
        raise BaseModelError(f"{model.name}: a Phi with RoPE scaling {shown(rope['rope_type'])} is not read")
    turning = model.value("rope.dimension_count")
    rope["partial_rotary_factor"] = 1.0 if turning is None else turning / config["head_dim"]
    original = rope.get("original_max_position_embeddings", config["max_position_embeddings"])
    return {
        "rope_parameters": rope,
        "original_max_position_embeddings": original,
        "sliding_window": _window(model),
    }


def _olmo2(model: GgufModel, config: Mapping[str, Any]) -> dict[str, Any]:
    window, rope = _window(model), config["rope_parameters"]
    if window is None:
        return {}
    return {
        "model_type": "olmo3",
        "architectures": ["Olmo3ForCausalLM"],
        "sliding_window": window,
        "layer_types": _layer_types(model, 4),
        "rope_parameters": {_FULL: rope, _SLIDING: _unscaled(model, rope["rope_theta"])},
    }


def _gemma(_model: GgufModel, _config: Mapping[str, Any]) -> dict[str, Any]:
    return {"hidden_act": _GELU}


def _gemma2(model: GgufModel, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_activation": _GELU,
        "query_pre_attn_scalar": _query_scalar(config, _GEMMA2_27B),
        "attn_logit_softcapping": model.positive("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": model.positive("final_logit_softcapping", 30.0),
        "sliding_window": _window(model) or _GEMMA2_WINDOW,
        "layer_types": _layer_types(model, 2),
    }


def _gemma3(model: GgufModel, config: Mapping[str, Any]) -> dict[str, Any]:
    window = _window(model)
    capped = model.value("final_logit_softcapping")
    return {
        "hidden_activation": _GELU,
        "query_pre_attn_scalar": _query_scalar(config, _GEMMA3_27B),
        "final_logit_softcapping": model.positive("final_logit_softcapping") if capped else None,
        "sliding_window": window or config["max_position_embeddings"],
        "layer_types": _layer_types(model, 6 if window else 1),
        "rope_parameters": {_FULL: config["rope_parameters"], _SLIDING: _unscaled(model, 10000.0)},
    }


def _query_scalar(config: Mapping[str, Any], largest: int) -> int:
    """Whose root divides the scores; of the family's largest model, told by its layers, it is another."""
    by_width = config["num_hidden_layers"] == largest
    return int(config["hidden_size"] // config["num_attention_heads"] if by_width else config["head_dim"])


def _unscaled(model: GgufModel, theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": model.positive("rope.freq_base_swa", theta)}


def _window(model: GgufModel) -> int | None:
    """How many positions a layer with a window sees; None: none has one, which 0 says as well."""
    return model.number("attention.sliding_window") if model.value("attention.sliding_window") else None


def _layer_types(model: GgufModel, usual: int) -> list[str]:
    """A type for each layer. Every so many-th sees the whole text, or the file has a truth value for each."""
    layers, key = model.number("block_count"), "attention.sliding_window_pattern"
    found = model.value(key)
    if isinstance(found, list):
        if len(found) != layers or not all(isinstance(slides, bool) for slides in found):
            raise model.fault(key, f"not one truth value for each of {layers} layers")
        return [_SLIDING if slides else _FULL for slides in found]
    every = usual if found is None else model.number(key)
    return [_SLIDING if (layer + 1) % every else _FULL for layer in range(layers)]


_SETTINGS: Mapping[str, Callable[[GgufModel, Mapping[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "smollm3": _llama,
    "granite": _granite,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}
