"""Which part of a model each rank has.

Heads of attention and inner features of MLPs are divided. So q, k, v, gate and up are cut along their
outputs, o and down along their inputs, whose products the ranks sum; the output head is cut along the
vocabulary. Embeddings and norms are whole on every rank. Where there are more ranks than heads of keys and
values, several ranks have the same one. A norm of all heads together is cut like the heads, and the ranks
sum the squares that it divides by.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from manylora.server.kernels.weights import DecoderWeights
from manylora.server.model.decoders.extraction import head_dim_of
from manylora.server.model.decoders.families import ACTIVATIONS, FAMILIES, Family


@dataclass(frozen=True)
class Cut:
    """What of a module a rank has; None: all."""

    outputs: tuple[range, ...] | None = None  # several where the module is stacked
    inputs: range | None = None

    def of_outputs(self, tensor: torch.Tensor) -> torch.Tensor:
        """The own part of ``tensor`` [..., out]."""
        if self.outputs is None:
            return tensor
        parts = [tensor[..., part.start : part.stop] for part in self.outputs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def of_inputs(self, tensor: torch.Tensor) -> torch.Tensor:
        """The own part of ``tensor`` [..., in]."""
        return tensor if self.inputs is None else tensor[..., self.inputs.start : self.inputs.stop]

    def of_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """The own part of W [out, in]."""
        return self.of_outputs(self.of_inputs(weight).T).T


WHOLE = Cut()


@dataclass(frozen=True)
class Sharding:
    """One rank's share of a model, by the sizes of all of it."""

    rank: int
    count: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any, rank: int, count: int) -> Sharding:
        """The share of ``rank`` in a model with this transformers config."""
        return cls(
            rank,
            count,
            config.num_attention_heads,
            config.num_key_value_heads,
            head_dim_of(config),
            config.intermediate_size,
            config.vocab_size,
        )

    @property
    def own_kv_heads(self) -> range:
        """The heads of keys and values that are here."""
        first = self.rank * self.kv_heads // self.count
        return range(first, first + max(1, self.kv_heads // self.count))

    @property
    def tokens(self) -> range:
        """Whose rows of the output head are here; fewer, or none, on the last rank."""
        rows = -(-self.vocabulary // self.count)
        return range(min(self.rank * rows, self.vocabulary), min((self.rank + 1) * rows, self.vocabulary))

    def cuts(self, matrix: str, *, stacked: bool) -> tuple[Cut, ...]:
        """Of the modules that a matrix of a layer has, which are one if it is ``stacked``."""
        size, features = self.head_dim, _share(self.inner, self.rank, self.count)
        query = _times(_share(self.heads, self.rank, self.count), size)
        if matrix == "o":
            return (Cut(inputs=query),)
        if matrix == "down":
            return (Cut(inputs=features),)
        parts, widths = [features, features], [self.inner, self.inner]
        if matrix == "qkv":
            own = _times(self.own_kv_heads, size)
            parts, widths = [query, own, own], [self.heads * size, *[self.kv_heads * size] * 2]
        if not stacked:
            return tuple(Cut(outputs=(part,)) for part in parts)
        starts = (sum(widths[:i]) for i in range(len(widths)))
        moved = (range(s + p.start, s + p.stop) for s, p in zip(starts, parts, strict=True))
        return (Cut(outputs=tuple(moved)),)

    def of_modules(self, weights: DecoderWeights) -> list[Cut]:
        """Of every module in the numbering of ``weights``, norms included."""
        layer = [
            cut
            for name in weights.layers[0].matrices
            for cut in self.cuts(name, stacked=name in weights.stacked)
        ]
        first, count = weights.layers[0], len(weights.layers)
        norms = [
            WHOLE if len(getattr(first, name)) == weights.head_dim else cut
            for name, cut in self._of_norms(first.norms)
        ]
        return [*layer * count, *norms * count, WHOLE]

    def _of_norms(self, names: Sequence[str]) -> list[tuple[str, Cut]]:
        """Of a layer's norms, where those of queries and keys are of all heads together."""
        query, key, _ = self.cuts("qkv", stacked=False)
        return [(name, {"q_norm": query, "k_norm": key}.get(name, WHOLE)) for name in names]

    def of_names(self, family: Family) -> Iterator[tuple[str, Cut]]:
        """Of what is cut in a block, by its name there: linear layers, and norms of all heads together."""
        for matrix, modules in family.modules.items():
            yield from zip(
                modules, self.cuts(matrix, stacked=matrix in _STACKABLE and len(modules) == 1), strict=True
            )
        if _norms_of_all_heads(family):
            yield from ((family.norms[name], cut) for name, cut in self._of_norms(["q_norm", "k_norm"]))

    def config(self, config: Any) -> Any:
        """The transformers config of the share: a model with fewer heads and inner features."""
        own = copy.deepcopy(config)
        own.num_attention_heads = self.heads // self.count
        own.num_key_value_heads = len(self.own_kv_heads)
        own.intermediate_size = self.inner // self.count
        own.head_dim = self.head_dim
        return own


_STACKABLE = ("qkv", "gate_up")


def unsupported(config: Any, count: int) -> str | None:
    """Why a model with this transformers config can't be divided into ``count`` parts, or None if it can."""
    kind = config.model_type
    family = FAMILIES.get(kind)
    if family is None or getattr(config, family.activation) not in ACTIVATIONS:
        return f"this model of type {kind!r} runs on the generic decoder, whose layers are not divided"
    if family.experts is not None:
        return f"experts are not divided, which models of type {kind!r} have"
    whole = Sharding.of(config, 0, count)
    reason = _uneven(whole)
    if reason is None and _norms_of_all_heads(family) and 2 * count > min(whole.heads, whole.kv_heads):
        return (
            f"models of type {kind!r} have norms over all heads together, for which each rank needs two "
            f"heads at least, and there are {whole.kv_heads} of keys and values"
        )
    return reason


def _norms_of_all_heads(family: Family) -> bool:
    """Whether queries and keys have norms of all heads together: where no norm stands before them."""
    return "q_norm" in family.norms and "input_norm" not in family.norms


def _uneven(whole: Sharding) -> str | None:
    """What of a model does not divide into equal parts."""
    count, heads, kv_heads = whole.count, whole.heads, whole.kv_heads
    if heads % count:
        return f"{heads} attention heads don't divide into {count} equal parts"
    if kv_heads % count and count % kv_heads:
        return (
            f"{kv_heads} heads of keys and values can neither be divided between {count} ranks nor repeated"
        )
    if heads % kv_heads:
        return f"{heads} heads don't divide into {kv_heads} groups"
    if whole.inner % count:
        return f"{whole.inner} inner features of the MLP don't divide into {count} equal parts"
    return None


def _share(total: int, rank: int, count: int) -> range:
    return range(rank * total // count, (rank + 1) * total // count)


def _times(heads: range, size: int) -> range:
    return range(heads.start * size, heads.stop * size)
