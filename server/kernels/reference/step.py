"""One step of a Llama-family decoder in plain PyTorch: the definition of the native step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from manylora.server.kernels.inputs import BLOCK_SIZE, ModuleShape, StepInputs
from manylora.server.kernels.reference import sampling
from manylora.server.kernels.reference.attention import (
    AttentionPlan,
    LayerCache,
    PagedKV,
    PlanRows,
    Scoring,
    plan_attention,
)
from manylora.server.kernels.reference.coded_cache import SCALE_BYTES, CodedKV
from manylora.server.kernels.reference.linear import Linear, PackedLinear, linear
from manylora.server.kernels.reference.lora import LoraDelta, LoraPlan, LoraPlanner, Planning
from manylora.server.kernels.reference.soft_prompts import fill_cache
from manylora.server.kernels.reference.vectors import NormChange
from manylora.server.kernels.weights import (
    MODULES_PER_LAYER,
    DecoderWeights,
    LayerWeights,
    MergedWeights,
    QuantizedMatrix,
    stack_biases,
)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, change: NormChange | None = None
) -> torch.Tensor:
    """RMSNorm over the last dimension, in fp32, rounded before the weight as Hugging Face does.

    ``change`` is what adapters add in some of the rows, the first dimension of ``x``.
    """
    wide = x.float()
    normal = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)
    y = weight * normal
    if change is not None:
        own = normal.index_select(0, change.rows).float()
        y.index_copy_(0, change.rows, (weight.float() * own + change.of(own)).to(y.dtype))
    return y


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of ``x`` [T, h, hd], halves rotated against each other; cos, sin [T, 1, hd / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def target_shapes(weights: DecoderWeights) -> list[ModuleShape]:
    """Shapes of the LoRA target modules in the numbering of :class:`DecoderWeights`."""
    width, inner = weights.embedding.shape[1], weights.intermediate
    q, kv = weights.n_heads * weights.head_dim, weights.n_kv_heads * weights.head_dim
    sizes = [(width, q), (width, kv), (width, kv), (q, width), (width, inner), (width, inner), (inner, width)]
    return [ModuleShape(*size) for size in sizes] * len(weights.layers)


def norm_shapes(weights: DecoderWeights) -> list[ModuleShape]:
    """Shapes of the norms in the numbering of :class:`DecoderWeights`: they come after the target modules."""
    width = weights.embedding.shape[1]
    widths = [width, weights.head_dim, weights.head_dim, width] if weights.qk_norms else [width, width]
    return [ModuleShape(w, w, linear=False) for w in (*widths * len(weights.layers), width)]


class ReferenceStep:
    """Runs steps on any device and dtype. Owns the KV cache."""

    name = "pytorch"
    draw = staticmethod(sampling.draw)

    def __init__(
        self,
        weights: DecoderWeights,
        pool: torch.Tensor,
        num_blocks: int,
        *,
        coded_cache: bool = False,
        decode_rows: PlanRows | None = None,
        lora_plan: Planning = LoraPlan,
    ) -> None:
        """Take the weights over and allocate the KV cache.

        Args:
            weights: of the base.
            pool: the elements that rank pages lie in.
            num_blocks: of the KV cache.
            coded_cache: whether keys and values are kept in 8 bits.
            decode_rows: attends for rows that decode; None is the reference's own.
            lora_plan: makes the adapters' delta of a step.
        """
        self._weights = weights.without_matrices()
        self._decode_rows = decode_rows
        self._pool = pool
        shapes = [*target_shapes(weights), *norm_shapes(weights)]
        self._planner = LoraPlanner(pool, shapes, self, lora_plan)
        heads, dim = weights.n_kv_heads, weights.head_dim
        like = weights.embedding
        self._kv: list[LayerCache] = [
            CodedKV(num_blocks, heads, dim, like)
            if coded_cache
            else PagedKV(num_blocks, heads, dim, dim, like)
            for _ in weights.layers
        ]
        self._layers = [_Layer(layer, self._weights, index) for index, layer in enumerate(weights.layers)]
        self._lm_head = PackedLinear(weights.lm_head, None)

    @staticmethod
    def kv_bytes_per_block(weights: DecoderWeights, *, coded_cache: bool = False) -> int:
        """Bytes of K and V that one block takes over all layers."""
        per_vector = weights.head_dim * weights.embedding.element_size()
        if coded_cache:
            per_vector = weights.head_dim + SCALE_BYTES
        return BLOCK_SIZE * 2 * weights.n_kv_heads * per_vector * len(weights.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes the weights take, norms and biases aside."""
        shared = self._lm_head.shares(self._weights.embedding)
        head = 0 if shared else self._lm_head.nbytes
        layers = sum(matrix.nbytes for layer in self._layers for matrix in layer.matrices.values())
        return self._weights.embedding.nbytes + head + layers

    def weight(self, module: int) -> torch.Tensor:
        """W [out, in] of a LoRA target module, or the weight [D] of a norm, as it was given."""
        layer, name = self._weights.place(module)
        matrix = None if layer == len(self._layers) else self._layers[layer].matrices.get(name)
        if matrix is None or isinstance(matrix, QuantizedMatrix):
            return self._weights.weight(module)
        return matrix.weight()[self._weights.rows(module)]

    def product(self, module: int, x: torch.Tensor) -> torch.Tensor:
        """``W x`` [T, out] of a LoRA target module, made by the matrix that holds it."""
        layer, name = self._weights.place(module)
        y = self._layers[layer].matrices[name](x)[:, self._weights.rows(module)]
        bias = self._weights.bias(module)
        return y if bias is None else y - bias

    def merged(self) -> MergedWeights:
        """Weights to run with instead of the base's; so far they are the base's."""
        return _MergedLayers(self._layers, self._weights)

    @torch.inference_mode()
    def step(self, inputs: StepInputs) -> torch.Tensor:
        """Run one step and return the logits [R, V] of ``inputs.logits_rows``."""
        weights = self._weights
        device = weights.embedding.device
        fill_cache(self._pool, self._kv, inputs.cached)
        x = F.embedding(torch.from_numpy(inputs.token_ids).to(device), weights.embedding)
        if inputs.embedded is not None:
            given = inputs.embedded
            x[torch.from_numpy(given.rows).to(device)] = given.values.to(x.dtype)
        merged = inputs.merged
        assert merged is None or isinstance(merged, _MergedLayers)
        work = self._work(
            torch.from_numpy(inputs.positions).to(device),
            plan_attention(inputs, device, self._decode_rows),
            self._planner.plan(inputs),
        )
        x = self._run(self._layers if merged is None else merged.layers, x, work)
        norm = self._weights.final_norm if merged is None else merged.final_norm
        final = self._final(x, norm, work.lora, torch.from_numpy(inputs.logits_rows).to(device))
        if inputs.hidden is not None:
            inputs.hidden.copy_(final)
        return self._lm_head(final)

    def decode(
        self, token_ids: torch.Tensor, positions: torch.Tensor, plan: AttentionPlan, lora: LoraDelta | None
    ) -> torch.Tensor:
        """The logits [T, V] of every row of a step that decodes on the base's own weights.

        Args:
            token_ids: [T].
            positions: [T].
            plan: how the rows attend.
            lora: what adapters add, if any.
        """
        x = F.embedding(token_ids, self._weights.embedding)
        x = self._run(self._layers, x, self._work(positions, plan, lora))
        return self._lm_head(self._final(x, self._weights.final_norm, lora, None))

    def _work(self, positions: torch.Tensor, plan: AttentionPlan, lora: LoraDelta | None) -> _Work:
        tables = self._weights.cos, self._weights.sin
        cos, sin = (t[positions].unsqueeze(1).to(self._weights.embedding.dtype) for t in tables)
        return _Work(cos, sin, plan, lora)

    def _run(self, layers: Sequence[_Layer], x: torch.Tensor, work: _Work) -> torch.Tensor:
        """Hidden states [T, D] behind the last layer, of the embeddings ``x`` [T, D]."""
        for layer, kv in zip(layers, self._kv, strict=True):
            x = layer.forward(x, work, kv)
        return x

    def _final(
        self, x: torch.Tensor, norm: torch.Tensor, lora: LoraDelta | None, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """The final hidden states of ``rows`` (None: all of them) that the output head is applied to."""
        module = self._weights.norm_modules(len(self._layers))[0]
        change = None if lora is None else lora.norm_change(module)
        if change is not None:  # the adapters' part is known by the rows of the step
            x = rms_norm(x, norm, self._weights.eps, change)
            return x if rows is None else x[rows]
        return rms_norm(x if rows is None else x[rows], norm, self._weights.eps)


class _MergedLayers:
    """Merged weights for the reference step: layers with other matrices in some places."""

    def __init__(self, base: Sequence[_Layer], weights: DecoderWeights) -> None:
        self.layers = list(base)
        self.final_norm = weights.final_norm
        self._weights = weights
        self.nbytes = 0

    def put(
        self,
        modules: Sequence[int],
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
    ) -> None:
        layer, name = self._weights.place(modules[0])
        if layer == len(self.layers):
            self.final_norm = weights[0]
            return
        if name not in self.layers[layer].matrices:
            self.layers[layer] = self.layers[layer].with_norm(name, weights[0])
            return
        matrix = PackedLinear(torch.cat(tuple(weights)), stack_biases(weights, biases))
        self.layers[layer] = self.layers[layer].with_matrix(name, matrix)
        self.nbytes += matrix.nbytes


@dataclass(frozen=True)
class _Work:
    """What every layer of one step shares."""

    cos: torch.Tensor  # [T, 1, hd / 2]
    sin: torch.Tensor  # [T, 1, hd / 2]
    plan: AttentionPlan
    lora: LoraDelta | None


class _Layer:
    def __init__(self, layer: LayerWeights, weights: DecoderWeights, index: int) -> None:
        self._layer = layer.without_matrices()
        self._weights = weights
        self._module = index * MODULES_PER_LAYER
        self._norms = weights.norm_modules(index)
        self._qkv = linear(layer.qkv, layer.qkv_bias)
        self._o = linear(layer.o, layer.o_bias)
        self._gate_up = linear(layer.gate_up, layer.gate_up_bias)
        self._down = linear(layer.down, layer.down_bias)

    @property
    def matrices(self) -> Mapping[str, Linear]:
        """By their names in :class:`LayerWeights`."""
        return {"qkv": self._qkv, "o": self._o, "gate_up": self._gate_up, "down": self._down}

    def with_matrix(self, name: str, matrix: Linear) -> _Layer:
        """This layer with another matrix under a name of :attr:`matrices`."""
        changed = copy(self)
        setattr(changed, f"_{name}", matrix)
        return changed

    def with_norm(self, name: str, weight: torch.Tensor) -> _Layer:
        """This layer with another weight of a norm, by its name in :class:`LayerWeights`."""
        changed = copy(self)
        changed._layer = replace(self._layer, **{name: weight})  # type: ignore[arg-type]
        return changed

    def forward(self, x: torch.Tensor, work: _Work, kv: LayerCache) -> torch.Tensor:
        """``x`` [T, D] -> [T, D]."""
        x = x + self._attention(self._norm(x, self._layer.input_norm, 0, work.lora), work, kv)
        return x + self._mlp(self._norm(x, self._layer.post_norm, -1, work.lora), work.lora)

    def _norm(
        self, x: torch.Tensor, weight: torch.Tensor, which: int, lora: LoraDelta | None
    ) -> torch.Tensor:
        """One of the layer's norms; ``which`` is its place among their numbers."""
        change = None if lora is None else lora.norm_change(self._norms[which])
        return rms_norm(x, weight, self._weights.eps, change)

    def _attention(self, h: torch.Tensor, work: _Work, kv: LayerCache) -> torch.Tensor:
        w, module = self._weights, self._module
        widths = [w.n_heads * w.head_dim, w.n_kv_heads * w.head_dim, w.n_kv_heads * w.head_dim]
        q, k, v = self._qkv(h).split(widths, dim=-1)
        if work.lora is not None:
            for i, y in enumerate((q, k, v)):
                work.lora.add(module + i, h, y)
        q, k, v = (t.unflatten(-1, (-1, w.head_dim)) for t in (q, k, v))
        if self._layer.q_norm is not None and self._layer.k_norm is not None:
            q = self._norm(q, self._layer.q_norm, 1, work.lora)
            k = self._norm(k, self._layer.k_norm, 2, work.lora)
        kv.write(work.plan.slots, rotate(k, work.cos, work.sin), v)
        q = rotate(q, work.cos, work.sin)
        out = work.plan.attend(kv, q, Scoring(w.scale, self._layer.window)).flatten(1)
        y = self._o(out)
        if work.lora is not None:
            work.lora.add(module + 3, out, y)
        return y

    def _mlp(self, h: torch.Tensor, lora: LoraDelta | None) -> torch.Tensor:
        module = self._module + 4
        gate, up = self._gate_up(h).chunk(2, dim=-1)
        if lora is not None:
            lora.add(module, h, gate)
            lora.add(module + 1, h, up)
        inner = F.silu(gate) * up
        y = self._down(inner)
        if lora is not None:
            lora.add(module + 2, inner, y)
        return y
