"""The architectures whose GGUF files are read: their tensors' names, and what of their metadata is known.

Whatever of an architecture's metadata is not listed here would be left out of account, and nothing would
show it: the model that a decoder is compared with comes from the same metadata. So it is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_QKV = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
_GATE_UP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
_OUTPUTS = {"attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}
_MATRICES = _QKV | _GATE_UP | _OUTPUTS
_STACKED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"} | _OUTPUTS

_PRE_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_SANDWICH_NORMS = _POST_NORMS | {"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures."""

    name: str
    model_type: str  # transformers'
    causal_lm: str  # transformers' class
    rotary_pairs: bool = False  # rows of q and k are those of Meta's rotary embedding, which pairs neighbours
    block: Mapping[str, str] = field(default_factory=lambda: _MATRICES | _PRE_NORMS)  # modules of a layer
    turns_partly: bool = False  # the rotary embedding may leave the rest of a head's dimensions as it is
    norm_offset: float = 0.0  # by how much norms in the file are larger than transformers'
    keys: frozenset[str] = frozenset()  # of metadata, beside KNOWN_KEYS

    def module_name(self, name: str) -> str | None:
        """transformers' name of a tensor: ``blk.3.attn_q.weight`` is a ``self_attn.q_proj.weight``.

        None for one that the architecture does not have.
        """
        block = re.fullmatch(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)", name)
        if block and block[2] in self.block:
            return f"model.layers.{int(block[1])}.{self.block[block[2]]}.{block[3]}"
        outer = re.fullmatch(r"(\w+)\.weight", name)
        return f"{_OUTER[outer[1]]}.weight" if outer and outer[1] in _OUTER else None


_WINDOWS = frozenset(["attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"])

ARCHITECTURES: Mapping[str, Architecture] = {
    row.name: row
    for row in (
        Architecture("llama", "llama", "LlamaForCausalLM", rotary_pairs=True),
        Architecture("qwen2", "qwen2", "Qwen2ForCausalLM"),
        Architecture("qwen3", "qwen3", "Qwen3ForCausalLM", block=_MATRICES | _PRE_NORMS | _QK_NORMS),
        Architecture("smollm3", "smollm3", "SmolLM3ForCausalLM", rotary_pairs=True),
        Architecture(
            "granite",
            "granite",
            "GraniteForCausalLM",
            rotary_pairs=True,
            keys=frozenset(["attention.scale", "embedding_scale", "residual_scale", "logit_scale"]),
        ),
        Architecture(
            "phi3",
            "phi3",
            "Phi3ForCausalLM",
            block=_STACKED | _PRE_NORMS,
            turns_partly=True,
            keys=frozenset(["attention.sliding_window", "rope.scaling.attn_factor"]),
        ),
        # OLMo 3 as well, which has windows.
        Architecture(
            "olmo2", "olmo2", "Olmo2ForCausalLM", block=_MATRICES | _POST_NORMS | _QK_NORMS, keys=_WINDOWS
        ),
        Architecture("gemma", "gemma", "GemmaForCausalLM", norm_offset=1.0),
        Architecture(
            "gemma2",
            "gemma2",
            "Gemma2ForCausalLM",
            block=_MATRICES | _SANDWICH_NORMS,
            norm_offset=1.0,
            keys=_WINDOWS - {"rope.freq_base_swa"} | {"attn_logit_softcapping", "final_logit_softcapping"},
        ),
        Architecture(
            "gemma3",
            "gemma3_text",
            "Gemma3ForCausalLM",
            block=_MATRICES | _SANDWICH_NORMS | _QK_NORMS,
            norm_offset=1.0,
            keys=_WINDOWS | {"final_logit_softcapping"},
        ),
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
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
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
