"""What llama.cpp's converter writes of a transformers configuration, a few lines for each family."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np

Config = dict[str, Any]


def write_config(writer: gguf.GGUFWriter, config: Config) -> None:
    """Add the metadata of ``config`` and, of long contexts, the tensors of factors that go with it."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if config["model_type"] in ("llama", "granite", "smollm3"):
        writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    _write_rope(writer, config["rope_parameters"], config)
    if further := _FURTHER.get(config["model_type"]):
        further(writer, config)


def _write_rope(writer: gguf.GGUFWriter, rope: Config, config: Config) -> None:
    whole = rope.get("full_attention", rope)
    writer.add_rope_freq_base(float(whole["rope_theta"]))
    if "sliding_attention" in rope:
        writer.add_key_value(
            f"{writer.arch}.rope.freq_base_swa",
            float(rope["sliding_attention"]["rope_theta"]),
            gguf.GGUFValueType.FLOAT32,
        )
    match whole["rope_type"]:
        case "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(whole["factor"])
        case "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(whole["factor"])
            writer.add_rope_scaling_orig_ctx_len(whole["original_max_position_embeddings"])
        case "longrope":
            original = whole["original_max_position_embeddings"]
            writer.add_rope_scaling_orig_ctx_len(original)
            scale = math.log(config["max_position_embeddings"] / original)
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + scale / math.log(original)))
            for texts in ("short", "long"):
                factors = np.array(whole[f"{texts}_factor"], np.float32)
                writer.add_tensor(f"rope_factors_{texts}.weight", factors)


def _granite(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])


def _phi3(writer: gguf.GGUFWriter, config: Config) -> None:
    part = config["rope_parameters"].get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(part * config["hidden_size"]) // config["num_attention_heads"])
    writer.add_sliding_window(config["sliding_window"] or 0)


def _gemma2(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def _gemma3(writer: gguf.GGUFWriter, config: Config) -> None:
    if config["final_logit_softcapping"]:
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def _olmo3(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config["sliding_window"])
    pattern = [kind == "sliding_attention" for kind in config["layer_types"]]
    writer.add_key_value(
        f"{writer.arch}.attention.sliding_window_pattern",
        pattern,
        gguf.GGUFValueType.ARRAY,
        gguf.GGUFValueType.BOOL,
    )


_FURTHER: Mapping[str, Callable[[gguf.GGUFWriter, Config], None]] = {
    "granite": _granite,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "olmo3": _olmo3,
}
