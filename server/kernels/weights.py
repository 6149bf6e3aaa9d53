"""The weights of a decoder of the Llama kind, in the shape the step kernels read them.

What families do differently is data here: norms that are there or not, scales, caps, windows and rotary
tables of layers, and modules that hold several projections. Kernels know these features and no family.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch

from manylora.server.kernels.matrices import Matrix, QuantizedMatrix, dense
from manylora.server.kernels.ranks import Ranks

_ALL = slice(None)
_PARTS = {"qkv": 3, "o": 1, "gate_up": 2, "down": 1}  # projections of each matrix of a layer
MATRICES = tuple(_PARTS)
# The norms that a layer may have, in the order of their numbers.
NORMS = ("input_norm", "q_norm", "k_norm", "attention_norm", "post_norm", "mlp_norm")
SILU, GELU_TANH = "silu", "gelu_tanh"  # activations


class MergedWeights(Protocol):
    """The base with other weights in some target modules; everything else is the base's own memory.

    Filled by one thread while steps run with other weights; unchanged once a step runs with it.
    """

    @property
    def nbytes(self) -> int:
        """Bytes it takes beside the base."""

    def put(
        self,
        modules: Sequence[int],
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
    ) -> None:
        """Give the target ``modules``, one whole group, the ``weights`` [out, in] and ``biases`` [out]."""


@dataclass(frozen=True)
class Experts:
    """The MLPs of a layer of which every row takes a few, in place of one for all."""

    router: torch.Tensor  # [E, D], whose products say which
    gate_up: torch.Tensor  # [E, 2 I, D]
    down: torch.Tensor  # [E, D, I]

    def without_memory(self) -> Experts:
        """Tensors that have a shape but no memory."""
        return Experts(self.router.to("meta"), self.gate_up.to("meta"), self.down.to("meta"))


class ExpertPlace(NamedTuple):
    """Where the matrix of one expert is."""

    layer: int
    name: str  # "gate_up" or "down", of Experts
    number: int  # of the expert


@dataclass(frozen=True)
class LayerWeights:
    """One decoder block. Matrices are [out, in]; fused ones are stacked along out. An absent norm is None.

    The bias of a quantized matrix is None here: its parts have it.
    """

    input_norm: torch.Tensor | None  # [D] of the attention's input
    qkv: Matrix  # [(nh + 2 nkv) hd, D]
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # RMSNorm before rope: [hd] of each head, [nh hd] of all heads together
    k_norm: torch.Tensor | None  # [hd] or [nkv hd], as q_norm
    o: Matrix  # [D, nh hd]
    o_bias: torch.Tensor | None
    post_norm: torch.Tensor | None  # [D] of the MLP's input
    gate_up: Matrix | None  # [2 I, D]; None: the layer has experts
    gate_up_bias: torch.Tensor | None
    down: Matrix | None  # [D, I]; None: experts
    down_bias: torch.Tensor | None
    window: int | None  # sliding attention window in tokens, the row itself included
    attention_norm: torch.Tensor | None = None  # [D] of the attention's output, before it is added
    mlp_norm: torch.Tensor | None = None  # [D] of the MLP's output, before it is added
    rope: int | None = 0  # the number of its rotary table; None: positions don't turn queries and keys
    experts: Experts | None = None

    @property
    def quantized(self) -> bool:
        """Whether any matrix is."""
        return any(isinstance(getattr(self, name), QuantizedMatrix) for name in MATRICES)

    @property
    def matrices(self) -> tuple[str, ...]:
        """The names of its matrices, those of experts aside."""
        return tuple(name for name in MATRICES if getattr(self, name) is not None)

    @property
    def norms(self) -> tuple[str, ...]:
        """The names of its norms, in the order of their numbers."""
        return tuple(name for name in NORMS if getattr(self, name) is not None)

    def without_matrices(self) -> LayerWeights:
        """The layer with matrices that have a shape but no memory; quantized ones stay."""
        return replace(
            self,
            qkv=_hollow(self.qkv),
            o=_hollow(self.o),
            gate_up=None if self.gate_up is None else _hollow(self.gate_up),
            down=None if self.down is None else _hollow(self.down),
            experts=None if self.experts is None else self.experts.without_memory(),
        )


@dataclass(frozen=True)
class DecoderWeights:
    """The weights of a whole decoder, and what it computes with them.

    LoRA target modules are numbered layer by layer: (q, k, v, o, gate, up, down), where the projections of a
    ``stacked`` matrix are one module, and a layer with experts has no gate, up and down. Behind them come the
    norms, layer by layer, in the order of :attr:`LayerWeights.norms`, which is the same of all layers, and
    the final one; then layer by layer and expert by expert gate and up, which are one module, and down.
    """

    embedding: torch.Tensor  # [V, D]
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # [D]
    lm_head: torch.Tensor  # [V, D], the embedding itself when tied
    cos: torch.Tensor  # [tables, max_len, rotated / 2] float32; the first `rotated` dimensions of a head turn
    sin: torch.Tensor  # as cos
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate: int  # of an MLP
    eps: float
    scale: float  # of the attention scores
    stacked: frozenset[str] = frozenset()  # "qkv", "gate_up": matrices that the model has as one module
    activation: str = SILU  # of the gate: SILU or GELU_TANH
    norm_offset: float = 0.0  # added to the weight of every norm
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what attention and MLP add
    score_cap: float | None = None  # bounds attention scores s by c * tanh(s / c)
    logit_scale: float = 1.0
    logit_cap: float | None = None  # bounds the scaled logits likewise
    expert_intermediate: int = 0  # of an expert; 0: no layer has any
    chosen_experts: int = 0  # that a row takes
    normalized_shares: bool = True  # whether the shares of a row's experts sum to 1
    ranks: Ranks | None = None  # that have parts of the heads, of MLPs and of the head's rows; here are one's

    @property
    def quantized(self) -> bool:
        """Whether any matrix is."""
        return any(layer.quantized for layer in self.layers)

    @property
    def waits(self) -> bool:
        """Whether a step may have to wait for what the device has computed: then it can't be captured."""
        matrices = (getattr(layer, name) for layer in self.layers for name in MATRICES)
        return self.routed or any(isinstance(m, QuantizedMatrix) and m.waits for m in matrices)

    @property
    def routed(self) -> bool:
        """Whether any of the layers has experts."""
        return any(layer.experts is not None for layer in self.layers)

    @property
    def experts(self) -> int:
        """How many experts a layer has that has some."""
        return next((len(layer.experts.router) for layer in self.layers if layer.experts is not None), 0)

    def without_matrices(self) -> DecoderWeights:
        """The decoder without the memory of its matrices, for a step that has them in its own form."""
        layers = tuple(layer.without_matrices() for layer in self.layers)
        return replace(self, layers=layers, lm_head=self.lm_head.to("meta"))

    @property
    def vocab_size(self) -> int:
        """Tokens that the head has."""
        return len(self.lm_head) if self.ranks is None else self.ranks.vocab_size

    @property
    def bends_logits(self) -> bool:
        """Whether logits are more than the product of the head."""
        return self.logit_scale != 1.0 or self.logit_cap is not None

    def norm_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """What a norm multiplies by: its ``weight``, in fp32 with the offset where there is one."""
        return weight.float() + self.norm_offset if self.norm_offset else weight

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """The number of each layer's first target module, and of the one behind them all."""
        counts = (sum(map(self._modules, layer.matrices)) for layer in self.layers)
        return tuple(accumulate(counts, initial=0))

    def _part_of(self, module: int) -> tuple[int, str, int]:
        """The layer of a target module, its matrix, and which part of it."""
        layer = bisect_right(self._starts, module) - 1
        names = self.layers[layer].matrices
        parts = [(name, part) for name in names for part in range(self._modules(name))]
        return layer, *parts[module - self._starts[layer]]

    def _modules(self, name: str) -> int:
        """How many target modules a matrix of a layer holds."""
        return 1 if name in self.stacked else _PARTS[name]

    @property
    def _norms(self) -> tuple[str, ...]:
        return self.layers[0].norms

    def norm_modules(self, layer: int) -> range:
        """The numbers of a layer's norms; of the final norm for the layer behind the last."""
        count = len(self._norms)
        first = self._starts[-1] + layer * count
        return range(first, first + (count if layer < len(self.layers) else 1))

    def expert_modules(self, layer: int) -> range:
        """The numbers of what adapters address of a layer's experts: two of each."""
        before = sum(other.experts is not None for other in self.layers[:layer])
        first = self.norm_modules(len(self.layers)).stop + 2 * self.experts * before
        return range(first, first + (0 if self.layers[layer].experts is None else 2 * self.experts))

    def weight(self, module: int) -> torch.Tensor:
        """W [out, in] of a LoRA target module, in the dtype of the embedding, or the weight [D] of a norm."""
        if (expert := self.expert_place(module)) is not None:
            experts = self.layers[expert.layer].experts
            assert experts is not None, "its modules are numbered"
            matrices: torch.Tensor = getattr(experts, expert.name)
            return matrices[expert.number]
        layer, name = self.place(module)
        if layer == len(self.layers):
            return self.final_norm
        matrix = getattr(self.layers[layer], name)
        if isinstance(matrix, QuantizedMatrix):
            return matrix.parts[self._part(module)].weight().to(self.embedding.dtype)
        return matrix if name in NORMS else dense(matrix)[self.rows(module)]

    def bias(self, module: int) -> torch.Tensor | None:
        """b [out] of a LoRA target module; None for a norm and for an expert's matrix."""
        if self.expert_place(module) is not None:
            return None
        layer, name = self.place(module)
        if name not in MATRICES:
            return None
        matrix = getattr(self.layers[layer], name)
        if isinstance(matrix, QuantizedMatrix):
            return matrix.parts[self._part(module)].bias
        bias: torch.Tensor | None = getattr(self.layers[layer], f"{name}_bias")
        return None if bias is None else bias[self.rows(module)]

    def modules_of(self, layer: int, name: str) -> range:
        """The numbers of the target modules that a matrix of a layer holds."""
        first = self._starts[layer]
        for other in self.layers[layer].matrices:
            if other == name:
                break
            first += self._modules(other)
        return range(first, first + self._modules(name))

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The target modules by the matrix that holds them, and each norm and expert's matrix alone."""
        matrices = [
            tuple(self.modules_of(index, name))
            for index, layer in enumerate(self.layers)
            for name in layer.matrices
        ]
        norms = range(self.norm_modules(0).start, self.norm_modules(len(self.layers)).stop)
        experts = (i for layer in range(len(self.layers)) for i in self.expert_modules(layer))
        return (*matrices, *((i,) for i in (*norms, *experts)))

    def expert_place(self, module: int) -> ExpertPlace | None:
        """Where an expert's matrix is that adapters know as ``module``; None if that is something else."""
        beyond = module - self.expert_modules(0).start
        if beyond < 0:
            return None
        which, number = divmod(beyond, 2 * self.experts)
        routed = [index for index, layer in enumerate(self.layers) if layer.experts is not None]
        return ExpertPlace(routed[which], "down" if number % 2 else "gate_up", number // 2)

    def place(self, module: int) -> tuple[int, str]:
        """The layer of a module, and the field of the matrix that holds it, or of the norm that it is.

        Those of experts have an :meth:`expert_place` instead.

        The final norm is in the layer behind the last.
        """
        norm = module - self._starts[-1]
        if norm >= 0:
            layer, which = divmod(norm, len(self._norms))
            return layer, "final_norm" if layer == len(self.layers) else self._norms[which]
        layer, name, _ = self._part_of(module)
        return layer, name

    def rows(self, module: int) -> slice:
        """The rows of its matrix that belong to a LoRA target module."""
        _, name, part = self._part_of(module)
        if self._modules(name) == 1:
            return _ALL
        if name == "gate_up":
            return slice(part * self.intermediate, (part + 1) * self.intermediate)
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        edges = (0, q, q + kv, q + 2 * kv)
        return slice(edges[part], edges[part + 1])

    def _part(self, module: int) -> int:
        return self._part_of(module)[2]


def stack_biases(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> torch.Tensor | None:
    """The biases along out, zeros for a module that has none beside one that does; None if none has."""
    if all(bias is None for bias in biases):
        return None
    parts = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)]
    return torch.cat(parts)


def _hollow(matrix: Matrix) -> Matrix:
    return matrix if isinstance(matrix, QuantizedMatrix) else matrix.to("meta")
