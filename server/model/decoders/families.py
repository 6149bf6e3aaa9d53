"""The families of models that the fused decoder runs: one table of how they differ from Llama.

A row says where a Hugging Face model of the family keeps what the decoder needs, and which features it has.
Every kernel backend implements all features (``server/kernels/weights.py``); no family has code of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from manylora.server.kernels.weights import GELU_TANH, SILU

ACTIVATIONS = {"silu": SILU, "swish": SILU, "gelu_pytorch_tanh": GELU_TANH, "gelu_new": GELU_TANH}

_SEPARATE = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_STACKED = _SEPARATE | {"qkv": ("self_attn.qkv_proj",), "gate_up": ("mlp.gate_up_proj",)}

_ATTENTION = {name: _SEPARATE[name] for name in ("qkv", "o")}
_MLP = {name: _SEPARATE[name] for name in ("gate_up", "down")}

_QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_PRE_NORMS = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
_POST_NORMS = {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}
_SANDWICH_NORMS = _POST_NORMS | {"input_norm": "input_layernorm", "post_norm": "pre_feedforward_layernorm"}


@dataclass(frozen=True)
class ExpertNames:
    """Where a family with routed experts keeps what is known of them: attributes of the config."""

    count: str
    width: str  # of an expert
    normalized: str | None = None  # whether the shares of a row's experts sum to 1; None: they do
    chosen: str = "num_experts_per_tok"
    router: str = "mlp.gate"  # a module
    module: str = "mlp.experts"  # whose tensors gate_up_proj and down_proj hold all experts
    mlp: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _MLP)  # of layers that have none


@dataclass(frozen=True)
class Family:
    """A family of models. Names of modules are within a block, those of attributes within the config."""

    title: str  # for people
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: _SEPARATE)  # of each matrix
    norms: Mapping[str, str] = field(default_factory=lambda: _PRE_NORMS)  # by their fields of LayerWeights
    activation: str = "hidden_act"  # attribute
    norm_offset: float = 0.0
    scaled_embeddings: bool = False  # the embedding module multiplies by its ``embed_scale``
    embedding_scale: str | None = None  # attribute: multiplies whatever enters the first layer
    residual_scale: str | None = None  # attribute
    logit_divisor: str | None = None  # attribute
    logit_cap: str | None = None  # attribute
    score_cap: str | None = None  # attribute
    window: str | None = None  # attribute: of all layers; else the attention of each says its own
    rope_by_layer_type: bool = False  # a rotary table for each type of layer
    experts: ExpertNames | None = None  # in place of the MLP, in all layers or some
    skips_rope: bool = False  # the attention of each layer says whether it uses its table


_GEMMA = Family("Gemma", norm_offset=1.0, scaled_embeddings=True)
_LATER_GEMMA = replace(_GEMMA, activation="hidden_activation", logit_cap="final_logit_softcapping")

FAMILIES: Mapping[str, Family] = {  # by model type
    "llama": Family("Llama 1 to 3, SmolLM 1 and 2, and others of the architecture"),
    "mistral": Family("Mistral", window="sliding_window"),
    "qwen2": Family("Qwen 2 and 2.5"),
    "qwen3": Family("Qwen 3, dense", norms=_PRE_NORMS | _QK_NORMS),
    "smollm3": Family("SmolLM 3", skips_rope=True),
    "phi3": Family("Phi-3, Phi-3.5 and Phi-4, text", modules=_STACKED, window="sliding_window"),
    "granite": Family(
        "Granite 3, dense",
        embedding_scale="embedding_multiplier",
        residual_scale="residual_multiplier",
        logit_divisor="logits_scaling",
    ),
    "mixtral": Family(
        "Mixtral",
        modules=_ATTENTION,
        window="sliding_window",
        experts=ExpertNames("num_local_experts", "intermediate_size"),
    ),
    "qwen3_moe": Family(
        "Qwen 3, with experts",
        modules=_ATTENTION,
        norms=_PRE_NORMS | _QK_NORMS,
        experts=ExpertNames("num_experts", "moe_intermediate_size", "norm_topk_prob"),
    ),
    "olmo2": Family("OLMo 2", norms=_POST_NORMS | _QK_NORMS),
    "olmo3": Family("OLMo 3", norms=_POST_NORMS | _QK_NORMS, rope_by_layer_type=True),
    "gemma": _GEMMA,
    "gemma2": replace(
        _LATER_GEMMA, title="Gemma 2", norms=_SANDWICH_NORMS, score_cap="attn_logit_softcapping"
    ),
    "gemma3_text": replace(
        _LATER_GEMMA,
        title="Gemma 3, text models",
        norms=_SANDWICH_NORMS | _QK_NORMS,
        rope_by_layer_type=True,
    ),
}
