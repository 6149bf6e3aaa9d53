"""What an adapter needs to know about the base model it rides on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from manylora.adapters.format.text.conventions import BaseText


@dataclass(frozen=True, slots=True)
class TargetModule:
    """A layer of the base that an adapter may change.

    Linear: ``y = W x + b`` with ``W`` [out, in]. A norm of ``in`` = ``out`` values: ``y = w ⊙ n(x) + b``.
    """

    name: str  # dotted path in the Hugging Face module tree, e.g. "model.layers.0.self_attn.q_proj"
    in_features: int
    out_features: int
    bias: bool = False  # whether it has b
    linear: bool = True
    transposed: bool = False  # whether the model keeps W as [in, out] (Conv1D)


@dataclass(frozen=True, slots=True)
class BaseVocabulary:
    """The tables at both ends of the base: embeddings [size, width] and output head [size, head_width]."""

    embedding: str  # dotted path in the module tree
    head: str
    size: int
    width: int
    head_width: int
    tied: bool  # whether both are one tensor
    head_bias: bool = False


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What each position has in the KV cache: in every layer a key and a value [heads, head size]."""

    layers: int
    heads: int
    head_size: int

    @property
    def elements(self) -> int:
        """Of one position."""
        return self.layers * 2 * self.heads * self.head_size


@dataclass(frozen=True)
class BaseModel:
    """Identity and adaptable modules of the base model.

    ``modules`` holds every linear layer inside the decoder blocks, keyed by name, in forward order;
    ``others`` names all other modules (embeddings, norms, ``lm_head``), so that a refusal can tell
    "not served" from "no such module".
    """

    name: str
    architecture: str  # "LlamaForCausalLM"
    model_type: str  # "llama"
    fingerprint: str  # hex digest over config and weights; equal only for the same base
    modules: Mapping[str, TargetModule]
    others: frozenset[str]
    vocabulary: BaseVocabulary | None = None  # None: adapters can't change its tables
    text: BaseText | None = None  # its tokenizer and template; None: adapters can't bring their own
    norms: Mapping[str, TargetModule] = field(default_factory=dict)  # whose weight and bias can be changed
    cache: CacheShape | None = None  # None: adapters can't put anything into its KV cache
    quantization: str = "none"  # or "nf4", "int8": what its linear layers are kept in while serving

    @property
    def weights_key(self) -> str:
        """Names the weights that are multiplied: the same base in fewer bits has others."""
        return self.fingerprint if self.quantization == "none" else f"{self.quantization}-{self.fingerprint}"
