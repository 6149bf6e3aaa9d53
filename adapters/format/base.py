"""What an adapter needs to know about the base model it rides on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from manylora.adapters.format.experts import ExpertLinear, ExpertStack, older_layers
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
    expert: bool = False  # a matrix of an :class:`ExpertStack`, which LoRA alone may change


def matrices_of(stack: ExpertStack) -> tuple[TargetModule, ...]:
    """The matrix of each expert of a stack, as adapters change them."""
    return tuple(
        TargetModule(name, stack.in_features, stack.out_features, expert=True) for name in stack.matrices
    )


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


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """How the rows of the base's query, key and value projections are dealt to heads."""

    query: int
    key_value: int  # a divisor of ``query``
    width: int  # rows of one head

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows of q, k and v."""
        return self.query * self.width, self.key_value * self.width, self.key_value * self.width

    def of_fused(self, rows: int) -> AttentionHeads | None:
        """The heads of a projection of q, k and v together, of so many rows; None where it can't be one.

        Configs of models whose queries all have a key of their own may say something else of the keys.
        """
        heads, rest = divmod(rows, self.width)
        keys, odd = divmod(heads - self.query, 2)
        if rest or odd or keys < 1 or self.query % keys:
            return None
        return AttentionHeads(self.query, keys, self.width)


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
    heads: AttentionHeads | None = None  # None: not the same in every block, or not known
    experts: Mapping[str, ExpertStack] = field(default_factory=dict)  # by name, in the model's order

    @cached_property
    def expert_layers(self) -> Mapping[str, ExpertLinear]:
        """The linear layers that older versions of the model had in place of :attr:`experts`, by name."""
        return older_layers(self.model_type, self.experts.values())

    def count_changed(self, names: Iterable[str]) -> int:
        """How many linear layers and stacks of experts the modules of those ``names`` are of."""
        stacks = {matrix: stack.name for stack in self.experts.values() for matrix in stack.matrices}
        changed = {stacks.get(name, name) for name in names}
        return len(changed & (self.modules.keys() | self.experts.keys()))

    @property
    def weights_key(self) -> str:
        """Names the weights that are multiplied: the same base in fewer bits has others."""
        return self.fingerprint if self.quantization == "none" else f"{self.quantization}-{self.fingerprint}"
