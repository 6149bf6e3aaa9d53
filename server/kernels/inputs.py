"""The arguments of one step, shared by every kernel backend.

Nothing here knows requests, schedulers or Hugging Face: rows, blocks and offsets only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from manylora.server.kernels.weights import MergedWeights

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]

BLOCK_SIZE = 16  # tokens per KV block
PAGE_ALIGN = 32  # a page's length is rounded up to a multiple of this many elements (64 bytes of bf16)


def page_length(features: int) -> int:
    """Elements one rank page's row of A (or column of B) takes in the pool."""
    return -(-features // PAGE_ALIGN) * PAGE_ALIGN


@dataclass(frozen=True, eq=False)
class VectorPages:
    """Where what an adapter has beside rank pages lies in the pool: element offsets, 0 where there is none.

    Each vector, and each row of a matrix, is padded with zeros to a whole page.
    """

    gain: Int64  # [M] γ [out]: times the module's output, bias included; of a norm, times n(x): w ⊙ n(x) + b
    constant: Int64  # [M] c [out]: added to the output
    input_gain: Int64  # [M] λ [in]: times the module's input, whose image under W is added
    change: Int64  # [M] ΔW [out, in], row after row: its product with the module's input is added
    partner: Int64  # [M] π [out]: times the module's output that is the partner of each
    input_blocks: Int64  # [M] Q [in, b], blocks [b, b] below each other: the image under W of x Q is added
    distance: Int64  # [M] d, no offset: of outputs in groups of 2 d the first d and the second are partners
    block_size: Int64  # [M] b, no offset: a multiple of PAGE_ALIGN; the last block may be cut off

    def each(self, of: Callable[[Int64], Int64]) -> VectorPages:
        """The tables that ``of`` makes of those that hold offsets."""
        return replace(
            self,
            gain=of(self.gain),
            constant=of(self.constant),
            input_gain=of(self.input_gain),
            change=of(self.change),
            partner=of(self.partner),
            input_blocks=of(self.input_blocks),
        )


@dataclass(frozen=True, eq=False)
class TablePages:
    """Where an adapter's change of a vocabulary table (embeddings or head) lies in the pool.

    For the embeddings A is stored by token, [V', r], and B as [r, D]; for the head A is [r, D] and B is
    stored by rank, [r, V']. The scaling is folded into B. Nothing is padded.
    """

    tokens: Int64  # [n] ascending: the tokens whose rows are replaced
    rows: int  # first element of the replaced rows [n, D]
    rank: int  # 0 without A and B
    a: int  # first element
    b: int


@dataclass(frozen=True, eq=False)
class ClassPages:
    """Where the head [count, D] of an adapter that classifies lies in the pool.

    It is float32 whatever the pool's dtype is, in as many elements as that takes.
    """

    count: int
    start: int  # first element


@dataclass(frozen=True, eq=False)
class VocabularyPages:
    """An adapter's own vocabulary. With the mix {(k, w_k)} a row has, E and H being the base's tables,

    the embedding  E[t] + Σ_k w_k [ (E_k[t] − E[t]) + B_k A_k[t] ]  of its token t, and
    the logits     H h + Σ_k w_k [ (H_k h − H h) + B_k (A_k h) ]    of its final hidden state h,

    where E_k and H_k have the replaced rows, and E and H are zero for tokens the base does not have.
    With ``classes``, a matrix C, the row has C h in the place of its first logits, in float32; such an
    adapter is the only one of its mix, with weight 1.
    """

    size: int  # V', at least the base's
    embedding: TablePages | None = None
    head: TablePages | None = None
    classes: ClassPages | None = None


@dataclass(frozen=True, slots=True)
class PromptPages:
    """Where the soft prompt of an adapter lies in the pool: one run of elements a virtual token.

    A row of a table [count, D] stands for the embedding of its position. With ``in_cache`` it is what the
    position has in the KV cache instead, [layers, 2, kv heads, head size], keys first.
    """

    count: int  # virtual tokens, which take the first positions of a sequence
    width: int  # elements of each
    start: int  # first element
    in_cache: bool = False


@dataclass(frozen=True, eq=False)
class AdapterPages:
    """Where a resident adapter lies in the pool. Immutable while any sequence holds it.

    For target module ``m`` the rank pages are one run starting at element ``offset[m]``: first the
    ``rank[m]`` rows of A, each ``page_length(in)`` elements, then the ``rank[m]`` columns of B, each
    ``page_length(out)`` elements, with the LoRA scaling folded into B. Padding elements are zero.

    A row with the mix {(k, w_k)} computes, y being the base's output ``W x + b`` of the module,

        y + Σ_k w_k [ B_k (A_k x) + ΔW_k x + γ_k ⊙ y + π_k ⊙ P_k y + c_k ] + W (Σ_k w_k (λ_k ⊙ x + x Q_k))

    P_k exchanging partners, and of a norm, y + Σ_k w_k (γ_k ⊙ n(x) + c_k), n(x) being what it makes of its
    input before it scales.
    """

    digest: str
    offset: Int64  # [M] element offset into the pool; 0 where rank is 0
    rank: Int32  # [M] 0 where the adapter has no A and B for the module
    start: int = 0  # first element of the whole adapter in the pool
    activation: tuple[int, ...] | None = None  # tokens that switch it on (aLoRA); read by schedulers only
    vectors: VectorPages | None = None  # None: the adapter has rank pages only
    vocabulary: VocabularyPages | None = None  # None: embeddings and head are the base's
    prompt: PromptPages | None = None  # None: sequences begin with their own tokens

    @property
    def acts_on_rows(self) -> bool:
        """Whether rows compute anything with it; a soft prompt alone is all in the context."""
        return self.prompt is None or self.vocabulary is not None


@dataclass(frozen=True)
class ModuleShape:
    """Sizes of one target module."""

    in_features: int
    out_features: int
    linear: bool = True  # False for a norm, which has gains and constants only; these come behind
    expert: bool = False  # of the rows that take the expert; these come last, and have A and B only


class BaseWeights(Protocol):
    """The base's own weights of the LoRA target modules, and of the norms."""

    def weight(self, module: int) -> torch.Tensor:
        """W [out, in] of that module, of a norm w [D], in the dtype it computes in; not to be changed.

        A quantized base makes it anew at every call: take one module at a time.
        """

    def bias(self, module: int) -> torch.Tensor | None:
        """b [out], or None where the module has none."""


class BaseProducts(Protocol):
    """The base's own arithmetic on the LoRA target modules."""

    def product(self, module: int, x: torch.Tensor) -> torch.Tensor:
        """``W x`` [T, out] of rows ``x`` [T, in], without the bias, in their dtype."""


@dataclass(frozen=True)
class LoraInputs:
    """Which pages each sequence of the step runs with, as a CSR list over sequences."""

    adapters: tuple[AdapterPages, ...]  # the distinct adapters of this step
    start: Int32  # [S + 1] sequence s has the entries start[s] : start[s + 1]
    adapter: Int32  # [E] index into ``adapters``
    weight: Float32  # [E] mix weight


def lora_inputs(mixes: Sequence[Sequence[tuple[AdapterPages, float]]]) -> LoraInputs | None:
    """The CSR list of the sequences' mixes, in order; None if all of them are empty."""
    index: dict[str, int] = {}
    adapters: list[AdapterPages] = []
    entries: list[int] = []
    weights: list[float] = []
    start = [0]
    for mix in mixes:
        for pages, weight in mix:
            if pages.digest not in index:
                index[pages.digest] = len(adapters)
                adapters.append(pages)
            entries.append(index[pages.digest])
            weights.append(weight)
        start.append(len(entries))
    if not entries:
        return None
    return LoraInputs(
        adapters=tuple(adapters),
        start=np.array(start, np.int32),
        adapter=np.array(entries, np.int32),
        weight=np.array(weights, np.float32),
    )


@dataclass(frozen=True)
class EmbeddedRows:
    """Rows of a step whose embeddings are given, instead of looked up."""

    rows: Int64  # [n] ascending
    values: torch.Tensor  # [n, D] float32, contiguous; to a step as they enter the first layer


@dataclass(frozen=True, slots=True)
class PromptRun:
    """Adjacent rows of a step whose embeddings lie in the pool, one after the other."""

    row: int  # the first one
    count: int
    start: int  # first element in the pool


@dataclass(frozen=True, slots=True)
class CacheRun:
    """Positions whose K and V, as in :class:`PromptPages`, lie in the pool one after the other."""

    slots: Int64  # [n] where they go in the KV cache
    start: int  # first element in the pool


@dataclass
class KeptStates:
    """The final hidden states of a step's logits rows, for whoever asks a decoder for them."""

    values: torch.Tensor | None = None  # [R, D] in the dtype of the step, on its device


@dataclass(frozen=True)
class StepInputs:
    """One step over T rows (tokens) of S sequences; each sequence owns a contiguous range of rows.

    Sequences with equal mixes are adjacent. Row t's K and V are written to ``slots[t]`` before
    attention; a row attends to every earlier position of its own sequence and to itself.
    """

    token_ids: Int64  # [T]
    positions: Int64  # [T] position in its sequence, from 0
    slots: Int64  # [T] block * BLOCK_SIZE + offset
    query_start: Int32  # [S + 1] sequence s owns rows query_start[s] : query_start[s + 1]
    context: Int32  # [S] tokens of the sequence in the KV cache once this step has run
    block_tables: Int32  # [S, B] block ids, padded with 0
    logits_rows: Int64  # [R] rows whose logits are wanted, ascending
    lora: LoraInputs | None  # None when every sequence runs the base
    embedded: EmbeddedRows | None = None  # their token ids are not looked at, but must be valid
    hidden: torch.Tensor | None = None  # [R, D] the step fills it with what the head is applied to
    raw_logits: bool = False  # the head's product alone is wanted, for the caller to correct and bend
    states: KeptStates | None = None  # a decoder puts there what the head was applied to
    merged: MergedWeights | None = None  # the weights all rows run on; None: the base's
    prompts: tuple[PromptRun, ...] = ()  # virtual tokens among the rows; their token ids must be valid
    cached: tuple[CacheRun, ...] = ()  # virtual tokens without rows, put into the cache before the rows run
