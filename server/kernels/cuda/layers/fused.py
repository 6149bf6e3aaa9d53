"""Runs the layers of a decoder with one kernel between two matrix products.

A layer of rows that decode is twelve launches: the four products; before each of them and behind the last
what the adapters, norms, positions, gate and residual need; and the two of attention. A mix costs two
launches of these, behind the output projection and behind the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton

from manylora.server.kernels.cuda.attention import MOST_PARTITIONS, PARTITION, TOKENS, DecodeRows
from manylora.server.kernels.cuda.layers import gate_kernels, head_kernels, norm_kernels
from manylora.server.kernels.cuda.layers.arguments import (
    Reduced,
    in_kernels,
    partial_of,
    pool_of,
    reduced_of,
    strided,
    tables_of,
    tensor_cores,
)
from manylora.server.kernels.cuda.layers.row_mixes import RowMixes
from manylora.server.kernels.cuda.lora import OUT, RANKS, ROW_SLICE
from manylora.server.kernels.cuda.types import dot_type, tile_of, window_of
from manylora.server.kernels.inputs import ModuleShape, page_length
from manylora.server.kernels.reference.attention import AttentionPlan, LayerCache
from manylora.server.kernels.reference.layer import Layer
from manylora.server.kernels.weights import GELU_TANH, DecoderWeights

_GATE_TILE = 512  # inner features of a program
_WHOLE = 8192  # features of a row that a norm reads at once, at most


@dataclass(frozen=True)
class FusedWork:
    """What the layers of one step share."""

    positions: torch.Tensor  # [T] int64
    slots: torch.Tensor  # [T] int64
    attention: DecodeRows | AttentionPlan  # the rows of the former are those of the step, in order
    mixes: RowMixes | None


@dataclass(frozen=True)
class _Norm:
    """A norm that may be absent, and its number among the modules."""

    weight: torch.Tensor | None = None
    module: int = 0

    @classmethod
    def of(cls, layer: Layer, name: str) -> _Norm:
        return cls(layer.norms[name], layer.norm_modules[name]) if name in layer.norms else cls()


@dataclass(frozen=True)
class Hidden:
    """What runs between layers: ``x`` [T, D] and what is to be added to it, behind a norm if there is one."""

    x: torch.Tensor
    added: torch.Tensor | None = None
    norm: _Norm = _Norm()

    def of(self, rows: torch.Tensor) -> Hidden:
        """Those of some rows."""
        return replace(self, x=self.x[rows], added=None if self.added is None else self.added[rows])


class FusedLayers:
    """The layers of one decoder. What the kernels read of adapters is given step by step."""

    def __init__(
        self, weights: DecoderWeights, shapes: Sequence[ModuleShape], *, fixed: bool = False
    ) -> None:
        """``shapes`` are those of the target modules.

        ``fixed``: a row has the same bits whichever kinds of mixes others have, for which some kernels are
        compiled anew: then none of them joins products and sums as its compiler pleases.
        """
        self._weights = weights
        self._options = {"enable_fp_fusion": False} if fixed else {}
        self._shapes = shapes
        self._final_module = weights.norm_modules(len(weights.layers))[0]

    @staticmethod
    def unsupported(weights: DecoderWeights) -> str | None:
        """Why the layers of a decoder can't be run so, in one phrase; None if they can."""
        first = weights.layers[0]
        if weights.routed:
            return "experts"
        if first.input_norm is None or first.post_norm is None:
            return "no norm before a product"
        wide = [
            norm
            for norm in (first.q_norm, first.k_norm)
            if norm is not None and len(norm) != weights.head_dim
        ]
        return "a norm of all heads together" if wide else None

    def run(
        self, layers: Sequence[Layer], cache: Sequence[LayerCache], x: torch.Tensor, work: FusedWork
    ) -> Hidden:
        """What :meth:`final` takes, of the embeddings ``x`` [T, D]."""
        hidden = Hidden(x)
        for layer, kv in zip(layers, cache, strict=True):
            hidden = self._layer(layer, kv, hidden, work)
        return hidden

    def final(
        self, hidden: Hidden, norm: torch.Tensor, mixes: RowMixes | None, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """What the head is applied to [R, D], of the ``rows`` alone if they are given."""
        if rows is not None:
            hidden = hidden.of(rows)
            mixes = None if mixes is None else replace(mixes, sequences=mixes.sequences[rows])
        _, h, _ = self._norm(hidden, _Norm(norm, self._final_module), range(0), mixes)
        return h

    def _layer(self, layer: Layer, kv: LayerCache, hidden: Hidden, work: FusedWork) -> Hidden:
        mixes = work.mixes
        x, h, reduced = self._norm(hidden, _Norm.of(layer, "input_norm"), _modules(layer, "qkv"), mixes)
        qkv = self._product(layer, "qkv", h, mixes)
        query = self._write_heads(layer, kv, qkv, reduced, work)
        attended, reduced = self._attend(layer, kv, query, work)
        added = self._added(layer, "o", attended, reduced, mixes)
        hidden = Hidden(x, added, _Norm.of(layer, "attention_norm"))
        x, h, reduced = self._norm(hidden, _Norm.of(layer, "post_norm"), _modules(layer, "gate_up"), mixes)
        gate_up = self._product(layer, "gate_up", h, mixes)
        inner, reduced = self._gate(layer, gate_up, reduced, mixes)
        added = self._added(layer, "down", inner, reduced, mixes)
        return Hidden(x, added, _Norm.of(layer, "mlp_norm"))

    def _norm(
        self, hidden: Hidden, norm: _Norm, modules: range, mixes: RowMixes | None
    ) -> tuple[torch.Tensor, torch.Tensor, Reduced]:
        """x with what was to be added, its norm, and for the ``modules`` that take it what A makes of it."""
        x, added, post = hidden.x, hidden.added, hidden.norm
        assert norm.weight is not None
        (rows, width), pages = x.shape, in_kernels(mixes) and bool(modules)
        after = x if added is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        h = torch.empty_like(x, memory_format=torch.contiguous_format)
        slices, parts = (triton.cdiv(width, ROW_SLICE), len(modules)) if pages else (1, 1)
        partial = partial_of(x, slices, parts, mixes) if pages else None
        scale = self._weights.residual_scale
        norm_kernels.norm_rows[(rows, slices, parts)](
            x, x.stride(0), *(strided(x) if added is None else strided(added)), after, h,
            norm.weight if post.weight is None else post.weight, norm.weight, width, self._weights.eps, scale,
            *pool_of(mixes, x), page_length(width), *tables_of(mixes, x),
            modules.start, norm.module, post.module, *reduced_of(partial, x)[:2],
            SLICE=ROW_SLICE, WHOLE=min(triton.next_power_of_2(width), _WHOLE), RANKS=RANKS,
            ADD=added is not None, POST=post.weight is not None, SCALE=scale != 1.0,
            MIXES=mixes is not None, PAGES=pages, TENSOR=tensor_cores(x), DOT=dot_type(x.dtype),
        )  # fmt: skip
        return after, h, partial

    def _product(self, layer: Layer, name: str, x: torch.Tensor, mixes: RowMixes | None) -> torch.Tensor:
        """A matrix of the layer times ``x``, with what mixes add in tiles; of pages in kernels, without."""
        y = layer.matrices[name](x)
        if mixes is not None and mixes.tiles is not None:
            modules, rows = _modules(layer, name), len(mixes.sequences)
            shapes = self._shapes[modules.start : modules.stop]
            mixes.tiles.add(modules.start, shapes, x[:rows], y[:rows])
        return y

    def _added(
        self, layer: Layer, name: str, x: torch.Tensor, reduced: Reduced, mixes: RowMixes | None
    ) -> torch.Tensor:
        """What attention or MLP adds to the residual [T, D], of the input ``x`` of its last matrix.

        Where ``x`` has twice the rows, the second half is what input gains made of the first.
        """
        y = self._own(layer, name, x, reduced, mixes)
        ranks = self._weights.ranks
        return y if ranks is None else ranks.sum(y)

    def _own(
        self, layer: Layer, name: str, x: torch.Tensor, reduced: Reduced, mixes: RowMixes | None
    ) -> torch.Tensor:
        """What :meth:`_added` makes, of the inputs that are here."""
        y = self._product(layer, name, x, mixes)
        if mixes is None:
            return y
        rows, module = len(mixes.sequences), _modules(layer, name).start
        scaled, bias = len(x) > rows, self._weights.bias(module)
        if scaled and bias is not None:
            y[rows:] -= bias
        if mixes.tiles is not None:
            return y[:rows] + y[rows:] if scaled else y
        shape = self._shapes[module]
        gate_kernels.add_rows[(rows, triton.cdiv(shape.out_features, OUT))](
            y, shape.out_features,
            mixes.pool, page_length(shape.in_features), page_length(shape.out_features),
            *tables_of(mixes, x)[1:], module, *reduced_of(reduced, x),
            TILE=OUT, RANKS=RANKS, SCALED=scaled, DOT=dot_type(x.dtype),
        )  # fmt: skip
        return y[:rows]

    def _write_heads(
        self, layer: Layer, kv: LayerCache, qkv: torch.Tensor, reduced: Reduced, work: FusedWork
    ) -> torch.Tensor:
        """The queries [T, nh, hd] as attention takes them; keys and values go to the cache."""
        w, mixes, size = self._weights, work.mixes, self._weights.head_dim
        heads, kv_heads, modules = w.n_heads, w.n_kv_heads, _modules(layer, "qkv")
        query = qkv.new_empty(len(qkv), heads, size)
        table = layer.source.rope
        cos, sin = (qkv, qkv) if table is None else (w.cos[table], w.sin[table])
        norms = [layer.norms.get(name) for name in ("q_norm", "k_norm")]
        q_out = self._shapes[modules.start].out_features
        head_kernels.write_heads[(len(qkv), heads + 2 * kv_heads)](
            qkv, qkv.stride(0), work.positions, work.slots, cos, sin,
            *(qkv if norm is None else norm for norm in norms), w.eps,
            query, kv.keys, kv.values, heads, kv_heads,
            *pool_of(mixes, qkv), page_length(w.embedding.shape[1]), page_length(q_out),
            page_length(self._shapes[modules.stop - 1].out_features), *tables_of(mixes, qkv),
            modules.start, layer.norm_modules.get("q_norm", 0), *reduced_of(reduced, qkv),
            HEAD_DIM=size, HEAD_TILE=tile_of(size), HALF=0 if table is None else w.cos.shape[-1],
            NORMS=norms[0] is not None, STACKED=len(modules) == 1, RANKS=RANKS,
            MIXES=mixes is not None, PAGES=reduced is not None, DOT=dot_type(qkv.dtype),
        )  # fmt: skip
        return query

    def _attend(
        self, layer: Layer, kv: LayerCache, query: torch.Tensor, work: FusedWork
    ) -> tuple[torch.Tensor, Reduced]:
        """Attention's output [T, nh hd], and what the A of the output projection makes of it."""
        attention, mixes = work.attention, work.mixes
        if isinstance(attention, AttentionPlan):
            return attention.attend(kv, query, layer.scoring).flatten(1), None
        if not in_kernels(mixes):
            out = torch.empty_like(query)
            attention.attend(kv, query, out, layer.scoring)
            return out.flatten(1), None
        rows, heads, size = query.shape
        parts = attention.attend_partitions(kv, query, layer.scoring)
        out, partial = torch.empty_like(query), partial_of(query, heads, 1, mixes)
        head_kernels.join_heads[(rows, heads)](
            parts.peak, parts.total, parts.weighted, attention.context, parts.count, window_of(layer.scoring),
            out, *pool_of(mixes, query), page_length(heads * size), *tables_of(mixes, query)[1:],
            _modules(layer, "o").start, *reduced_of(partial, query)[:2],
            VALUE_DIM=size, VALUE_TILE=tile_of(size),
            LEAST=PARTITION, MOST=MOST_PARTITIONS, TOKENS=TOKENS, RANKS=RANKS,
            TENSOR=tensor_cores(query), DOT=dot_type(query.dtype),
        )  # fmt: skip
        return out.flatten(1), partial

    def _gate(
        self, layer: Layer, gate_up: torch.Tensor, reduced: Reduced, mixes: RowMixes | None
    ) -> tuple[torch.Tensor, Reduced]:
        """The MLP's inner features [T, I], and what the A of ``down`` makes of them.

        With input gains [2 T, I]: behind them stands what those make of them.
        """
        w, width, rows = self._weights, self._weights.intermediate, len(gate_up)
        scaled = mixes is not None and mixes.scaled
        inner = gate_up.new_empty(rows * (2 if scaled else 1), width)
        tiles = triton.cdiv(width, _GATE_TILE)
        partial = None if reduced is None else partial_of(gate_up, tiles, 1, mixes)
        modules = _modules(layer, "gate_up")
        gate_kernels.gate_rows[(rows, tiles)](
            gate_up, gate_up.stride(0), inner, width,
            *pool_of(mixes, gate_up), page_length(w.embedding.shape[1]),
            page_length(self._shapes[modules.start].out_features), page_length(width),
            *tables_of(mixes, gate_up), gate_up if mixes is None else mixes.tables.input_gain,
            modules.start, _modules(layer, "down").start,
            *reduced_of(reduced, gate_up), *reduced_of(partial, gate_up)[:2],
            TILE=_GATE_TILE, RANKS=RANKS, GELU=w.activation == GELU_TANH, STACKED=len(modules) == 1,
            PAGES=reduced is not None, SCALED=scaled,
            TENSOR=tensor_cores(gate_up), DOT=dot_type(gate_up.dtype), **self._options,
        )  # fmt: skip
        return inner, partial


def _modules(layer: Layer, name: str) -> range:
    """The numbers of the target modules that a matrix holds."""
    modules = [module for module, _ in layer.modules[name]]
    return range(modules[0], modules[-1] + 1)
