"""One step of a decoder in plain PyTorch: the definition of the native step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from manylora.server.kernels.inputs import BLOCK_SIZE, ModuleShape, StepInputs
from manylora.server.kernels.reference import sampling
from manylora.server.kernels.reference.attention import (
    AttentionPlan,
    LayerCache,
    PagedKV,
    PlanRows,
    plan_attention,
)
from manylora.server.kernels.reference.coded_cache import SCALE_BYTES, CodedKV
from manylora.server.kernels.reference.expert_lora import expert_delta
from manylora.server.kernels.reference.layer import Layer, Work, rms_norm
from manylora.server.kernels.reference.linear import PackedLinear
from manylora.server.kernels.reference.lora import LoraDelta, LoraPlan, LoraPlanner, Planning
from manylora.server.kernels.reference.soft_prompts import fill_cache
from manylora.server.kernels.weights import (
    DecoderWeights,
    MergedWeights,
    QuantizedMatrix,
    stack_biases,
)


def bend(logits: torch.Tensor, weights: DecoderWeights) -> torch.Tensor:
    """What the model makes of the head's product, in the dtype of ``logits`` [R, V]."""
    if weights.logit_scale != 1.0:
        logits = logits * weights.logit_scale
    return logits if weights.logit_cap is None else torch.tanh(logits / weights.logit_cap) * weights.logit_cap


def target_shapes(weights: DecoderWeights) -> list[ModuleShape]:
    """Shapes of the LoRA target modules in the numbering of :class:`DecoderWeights`."""
    width, inner = weights.embedding.shape[1], weights.intermediate
    q, kv = weights.n_heads * weights.head_dim, weights.n_kv_heads * weights.head_dim
    sizes = {
        "qkv": [(width, q), (width, kv), (width, kv)],
        "o": [(q, width)],
        "gate_up": [(width, inner), (width, inner)],
        "down": [(inner, width)],
    }
    for name in weights.stacked:
        sizes[name] = [(sizes[name][0][0], sum(out for _, out in sizes[name]))]
    return [ModuleShape(*size) for name in weights.layers[0].matrices for size in sizes[name]] * len(
        weights.layers
    )


def norm_shapes(weights: DecoderWeights) -> list[ModuleShape]:
    """Shapes of the norms in the numbering of :class:`DecoderWeights`: they come after the target modules."""
    first = weights.layers[0]
    widths = [len(getattr(first, name)) for name in first.norms] * len(weights.layers)
    return [ModuleShape(w, w, linear=False) for w in (*widths, weights.embedding.shape[1])]


def expert_shapes(weights: DecoderWeights) -> list[ModuleShape]:
    """Shapes of what adapters address of the experts, in the numbering of :class:`DecoderWeights`."""
    width, inner = weights.embedding.shape[1], weights.intermediate
    pair = [ModuleShape(width, 2 * inner, expert=True), ModuleShape(inner, width, expert=True)]
    return pair * (sum(len(weights.expert_modules(i)) for i in range(len(weights.layers))) // 2)


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
        shapes = [*target_shapes(weights), *norm_shapes(weights), *expert_shapes(weights)]
        self._shapes = shapes
        self._planner = LoraPlanner(pool, shapes, self, lora_plan)
        heads, dim = weights.n_kv_heads, weights.head_dim
        like = weights.embedding
        self._kv: list[LayerCache] = [
            CodedKV(num_blocks, heads, dim, like)
            if coded_cache
            else PagedKV(num_blocks, heads, dim, dim, like)
            for _ in weights.layers
        ]
        self._layers = [Layer(layer, self._weights, index) for index, layer in enumerate(weights.layers)]
        self._final_norm = weights.norm_weight(weights.final_norm)
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
        layers = sum(layer.nbytes for layer in self._layers)
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
        """Run one step and return the logits [R, V] of ``inputs.logits_rows``.

        Where ``inputs.hidden`` is given they are the head's product alone, which the caller corrects and then
        gives to :func:`bend`.
        """
        weights = self._weights
        device = weights.embedding.device
        fill_cache(self._pool, self._kv, inputs.cached)
        x = self._embed(torch.from_numpy(inputs.token_ids).to(device))
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
        experts = expert_delta(self._pool, self._shapes, inputs.lora, inputs.query_start)
        work = replace(work, experts=experts)
        x = self._run(self._layers if merged is None else merged.layers, x, work)
        norm = self._final_norm if merged is None else merged.final_norm
        final = self._final(x, norm, work.lora, torch.from_numpy(inputs.logits_rows).to(device))
        logits = self._lm_head(final)
        if inputs.hidden is None:
            return bend(logits, weights)
        inputs.hidden.copy_(final)
        return logits

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
        x = self._run(self._layers, self._embed(token_ids), self._work(positions, plan, lora))
        return bend(self._lm_head(self._final(x, self._final_norm, lora, None)), self._weights)

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        x = F.embedding(token_ids, self._weights.embedding)
        return x if self._weights.embedding_scale == 1.0 else x * self._weights.embedding_scale

    def _work(self, positions: torch.Tensor, plan: AttentionPlan, lora: LoraDelta | None) -> Work:
        tables = self._weights.cos, self._weights.sin
        cos, sin = (t[:, positions].unsqueeze(2).to(self._weights.embedding.dtype) for t in tables)
        return Work(tuple(zip(cos, sin, strict=True)), plan, lora)

    def _run(self, layers: Sequence[Layer], x: torch.Tensor, work: Work) -> torch.Tensor:
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

    def __init__(self, base: Sequence[Layer], weights: DecoderWeights) -> None:
        self.layers = list(base)
        self.final_norm = weights.norm_weight(weights.final_norm)
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
            self.final_norm = self._weights.norm_weight(weights[0])
            return
        if name not in self.layers[layer].matrices:
            self.layers[layer] = self.layers[layer].with_norm(name, weights[0])
            return
        matrix = PackedLinear(torch.cat(tuple(weights)), stack_biases(weights, biases))
        self.layers[layer] = self.layers[layer].with_matrix(name, matrix)
        self.nbytes += matrix.nbytes
