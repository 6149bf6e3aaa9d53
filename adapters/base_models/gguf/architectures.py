"""The architectures whose GGUF files are read, and what of their metadata is known.

Whatever of an architecture's metadata is not listed here would be left out of account, and nothing would
show it: the model that a decoder is compared with comes from the same metadata. So it is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures."""

    name: str
    model_type: str  # transformers'
    causal_lm: str  # transformers' class
    rotary_pairs: bool  # rows of q and k are those of Meta's rotary embedding, which pairs neighbours


ARCHITECTURES: Mapping[str, Architecture] = {
    row.name: row
    for row in (
        Architecture("llama", "llama", "LlamaForCausalLM", rotary_pairs=True),
        Architecture("qwen2", "qwen2", "Qwen2ForCausalLM", rotary_pairs=False),
        Architecture("qwen3", "qwen3", "Qwen3ForCausalLM", rotary_pairs=False),
    )
}

# Without the architecture's name in front.
KNOWN_KEYS = frozenset(
    [
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "vocab_size",
        "tensor_data_layout",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
    ]
)
# Of no account when they are 0, false or empty, as converters write them for models that have none.
IDLE_KEYS = frozenset(
    [
        "expert_count",
        "expert_used_count",
        "attention.sliding_window",
        "attention.clamp_kqv",
        "logit_scale",
        "use_parallel_residual",
    ]
)
