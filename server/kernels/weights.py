"""The weights of a Llama-family decoder, in the shape the step kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from manylora.server.kernels.codes import Codes

MODULES_PER_LAYER = 7  # q, k, v, o, gate, up, down

_ALL = slice(None)
# Of each of the seven: the matrix it is stacked in, and which part of it.
_STACKED = (("qkv", 0), ("qkv", 1), ("qkv", 2), ("o", 0), ("gate_up", 0), ("gate_up", 1), ("down", 0))
_MATRICES = ("qkv", "o", "gate_up", "down")
_GROUPS = ((0, 1, 2), (3,), (4, 5), (6,))  # modules of each matrix


class QuantizedLayer(Protocol):
    """One linear layer of a quantized base."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    def codes(self) -> Codes | None:
        """What the layer stores; None where only another library can read it."""

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's bias b [out], or None."""

    @property
    def nbytes(self) -> int:
        """Bytes its codes and scales take."""

    def weight(self) -> torch.Tensor:
        """W [out, in] that the codes stand for, made anew at every call."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``W x + b`` of rows ``x`` [T, in], in the dtype of ``x``."""


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A matrix of a quantized base: layers stacked along out, each with its own codes, scales and bias."""

    parts: tuple[QuantizedLayer, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that the codes and scales of the matrix take."""
        return sum(part.nbytes for part in self.parts)

    def bias(self) -> torch.Tensor | None:
        """The biases along out, zeros for a part that has none; None if none has."""
        given = next((part.bias for part in self.parts if part.bias is not None), None)
        if given is None:
            return None
        none = [given.new_zeros(part.shape[0]) for part in self.parts]
        return torch.cat(
            [z if part.bias is None else part.bias for part, z in zip(self.parts, none, strict=True)]
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product of the rows ``x`` with the matrix, biases added: [T, in] -> [T, out]."""
        outputs = [part(x) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


Matrix = torch.Tensor | QuantizedMatrix


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
class LayerWeights:
    """One decoder block of the Llama family. Matrices are [out, in]; fused ones are stacked along out.

    The bias of a quantized matrix is None here: its parts have it.
    """

    input_norm: torch.Tensor  # [D]
    qkv: Matrix  # [(nh + 2 nkv) hd, D]
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [hd], RMSNorm per head before rope (Qwen3)
    k_norm: torch.Tensor | None  # [hd]
    o: Matrix  # [D, nh hd]
    o_bias: torch.Tensor | None
    post_norm: torch.Tensor  # [D]
    gate_up: Matrix  # [2 I, D]
    gate_up_bias: torch.Tensor | None
    down: Matrix  # [D, I]
    down_bias: torch.Tensor | None
    window: int | None  # sliding attention window in tokens, the row itself included

    @property
    def quantized(self) -> bool:
        """Whether any matrix is."""
        return any(isinstance(getattr(self, name), QuantizedMatrix) for name in _MATRICES)

    def without_matrices(self) -> LayerWeights:
        """The layer with matrices that have a shape but no memory; quantized ones stay."""
        return replace(
            self,
            qkv=_hollow(self.qkv),
            o=_hollow(self.o),
            gate_up=_hollow(self.gate_up),
            down=_hollow(self.down),
        )


@dataclass(frozen=True)
class DecoderWeights:
    """The weights of a whole Llama-family decoder.

    LoRA target modules are numbered ``layer * 7 + (q, k, v, o, gate, up, down)``. Behind them come the norms,
    layer by layer: (input, post) or, with norms of queries and keys, (input, q, k, post); the final one last.
    """

    embedding: torch.Tensor  # [V, D]
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # [D]
    lm_head: torch.Tensor  # [V, D], the embedding itself when tied
    cos: torch.Tensor  # [max_len, hd / 2] float32
    sin: torch.Tensor  # [max_len, hd / 2] float32
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate: int
    eps: float
    scale: float  # of the attention scores

    @property
    def quantized(self) -> bool:
        """Whether any matrix is."""
        return any(layer.quantized for layer in self.layers)

    def without_matrices(self) -> DecoderWeights:
        """The decoder without the memory of its matrices, for a step that has them in its own form."""
        layers = tuple(layer.without_matrices() for layer in self.layers)
        return replace(self, layers=layers, lm_head=self.lm_head.to("meta"))

    @property
    def qk_norms(self) -> bool:
        """Whether queries and keys are normalized."""
        return any(layer.q_norm is not None for layer in self.layers)

    @property
    def _norms(self) -> tuple[str, ...]:
        """The norms of a layer by their names in :class:`LayerWeights`."""
        return (
            ("input_norm", "q_norm", "k_norm", "post_norm") if self.qk_norms else ("input_norm", "post_norm")
        )

    def norm_modules(self, layer: int) -> range:
        """The numbers of a layer's norms; of the final norm for the layer behind the last."""
        count = len(self._norms)
        first = MODULES_PER_LAYER * len(self.layers) + layer * count
        return range(first, first + (count if layer < len(self.layers) else 1))

    def weight(self, module: int) -> torch.Tensor:
        """W [out, in] of a LoRA target module, in the dtype of the embedding, or the weight [D] of a norm."""
        layer, name = self.place(module)
        if layer == len(self.layers):
            return self.final_norm
        if name in self._norms:
            return getattr(self.layers[layer], name)  # type: ignore[no-any-return]
        matrix = getattr(self.layers[layer], name)
        if isinstance(matrix, QuantizedMatrix):
            return matrix.parts[self._part(module)].weight().to(self.embedding.dtype)
        return dense(matrix)[self.rows(module)]

    def bias(self, module: int) -> torch.Tensor | None:
        """b [out] of a LoRA target module; None for a norm."""
        layer, name = self.place(module)
        if name not in _MATRICES:
            return None
        matrix = getattr(self.layers[layer], name)
        if isinstance(matrix, QuantizedMatrix):
            return matrix.parts[self._part(module)].bias
        bias: torch.Tensor | None = getattr(self.layers[layer], f"{name}_bias")
        return None if bias is None else bias[self.rows(module)]

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The target modules by the matrix that holds them, and each norm alone."""
        end = MODULES_PER_LAYER * len(self.layers)
        matrices = [
            tuple(i + k for k in group) for i in range(0, end, MODULES_PER_LAYER) for group in _GROUPS
        ]
        return (*matrices, *((i,) for i in range(end, self.norm_modules(len(self.layers)).stop)))

    def place(self, module: int) -> tuple[int, str]:
        """The layer of a module, and the field of the matrix that holds it, or of the norm that it is.

        The final norm is in the layer behind the last.
        """
        norm = module - MODULES_PER_LAYER * len(self.layers)
        if norm >= 0:
            layer, which = divmod(norm, len(self._norms))
            return layer, "final_norm" if layer == len(self.layers) else self._norms[which]
        return module // MODULES_PER_LAYER, _STACKED[module % MODULES_PER_LAYER][0]

    def rows(self, module: int) -> slice:
        """The rows of its matrix that belong to a LoRA target module."""
        _, name = self.place(module)
        part = self._part(module)
        if name == "gate_up":
            return slice(part * self.intermediate, (part + 1) * self.intermediate)
        if name != "qkv":
            return _ALL
        q, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        edges = (0, q, q + kv, q + 2 * kv)
        return slice(edges[part], edges[part + 1])

    def _part(self, module: int) -> int:
        return _STACKED[module % MODULES_PER_LAYER][1]


def stack_biases(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> torch.Tensor | None:
    """The biases along out, zeros for a module that has none beside one that does; None if none has."""
    if all(bias is None for bias in biases):
        return None
    parts = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)]
    return torch.cat(parts)


def codes_of(matrix: QuantizedMatrix) -> list[Codes]:
    """The codes of each part, which are known to be there."""
    found = [part.codes for part in matrix.parts]
    codes = [codes for codes in found if codes is not None]
    assert len(codes) == len(found)
    return codes


def dense(matrix: Matrix) -> torch.Tensor:
    """``matrix``, which is known not to be quantized."""
    assert isinstance(matrix, torch.Tensor)
    return matrix


def _hollow(matrix: Matrix) -> Matrix:
    return matrix if isinstance(matrix, QuantizedMatrix) else matrix.to("meta")
