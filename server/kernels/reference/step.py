"""One step of a decoder in plain PyTorch: the definition of the native step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.inputs import BLOCK_SIZE, ModuleShape, StepInputs
from manylora.server.kernels.matrices import QuantizedMatrix
from manylora.server.kernels.reference import sampling
from manylora.server.kernels.reference.attention import (
    AttentionPlan,
    LayerCache,
    PagedKV,
    PlanAttention,
    plan_attention,
)
from manylora.server.kernels.reference.coded_cache import SCALE_BYTES, CodedKV
from manylora.server.kernels.reference.expert_lora import expert_delta
from manylora.server.kernels.reference.layer import Layer, Work, rms_norm
from manylora.server.kernels.reference.linear import Dense, JoinedHead, PackedLinear
from manylora.server.kernels.reference.lora import LoraDelta, LoraPlan, LoraPlanner, Planning
from manylora.server.kernels.reference.soft_prompts import fill_cache
from manylora.server.kernels.weights import DecoderWeights, MergedWeights, stack_biases


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
    return [ModuleShape(*size) for layer in weights.layers for name in layer.matrices for size in sizes[name]]


def norm_shapes(weights: DecoderWeights) -> list[ModuleShape]:
    """Shapes of the norms in the numbering of :class:`DecoderWeights`: they come after the target modules."""
    first = weights.layers[0]
    widths = [len(getattr(first, name)) for name in first.norms] * len(weights.layers)
    return [ModuleShape(w, w, linear=False) for w in (*widths, weights.embedding.shape[1])]


def expert_shapes(weights: DecoderWeights) -> list[ModuleShape]:
    """Shapes of what adapters address of the experts, in the numbering of :class:`DecoderWeights`."""
    width, inner = weights.embedding.shape[1], weights.expert_intermediate
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
        attention: PlanAttention = plan_attention,
        lora_plan: Planning = LoraPlan,
        dense: Dense = PackedLinear,
    ) -> None:
        """Take the weights over and allocate the KV cache.

        Args:
            weights: of the base.
            pool: the elements that rank pages lie in.
            num_blocks: of the KV cache.
            coded_cache: whether keys and values are kept in 8 bits.
            attention: plans that of a step.
            lora_plan: makes the adapters' delta of a step.
            dense: makes the products of matrices that are not quantized.
        """
        self.weights = weights.without_matrices()
        self._plan_attention = attention
        self._pool = pool
        shapes = [*target_shapes(weights), *norm_shapes(weights), *expert_shapes(weights)]
        self._shapes = shapes
        self._planner = LoraPlanner(pool, shapes, self, lora_plan)
        heads, dim = weights.n_kv_heads, weights.head_dim
        like = weights.embedding
        self.cache: list[LayerCache] = [
            CodedKV(num_blocks, heads, dim, like)
            if coded_cache
            else PagedKV(num_blocks, heads, dim, dim, like)
            for _ in weights.layers
        ]
        self._dense = dense
        self.layers = [Layer(layer, self.weights, index, dense) for index, layer in enumerate(weights.layers)]
        self.final_norm = weights.norm_weight(weights.final_norm)
        head, ranks = dense(weights.lm_head, None), weights.ranks
        self.lm_head = head if ranks is None else JoinedHead(head, ranks)

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
        shared = self.lm_head.shares(self.weights.embedding)
        head = 0 if shared else self.lm_head.nbytes
        layers = sum(layer.nbytes for layer in self.layers)
        return self.weights.embedding.nbytes + head + layers

    def weight(self, module: int) -> torch.Tensor:
        """W [out, in] of a LoRA target module, or the weight [D] of a norm, as it was given."""
        if (expert := self.weights.expert_place(module)) is not None:
            return self.layers[expert.layer].expert_weight(expert)
        layer, name = self.weights.place(module)
        matrix = None if layer == len(self.layers) else self.layers[layer].matrices.get(name)
        if matrix is None or isinstance(matrix, QuantizedMatrix):
            return self.weights.weight(module)
        return matrix.weight()[self.weights.rows(module)]

    def product(self, module: int, x: torch.Tensor) -> torch.Tensor:
        """``W x`` [T, out] of a LoRA target module, made by the matrix that holds it."""
        layer, name = self.weights.place(module)
        y = self.layers[layer].matrices[name](x)[:, self.weights.rows(module)]
        bias = self.weights.bias(module)
        return y if bias is None else y - bias

    def merged(self) -> MergedWeights:
        """Weights to run with instead of the base's; so far they are the base's."""
        return MergedLayers(self.layers, self.weights, self._dense)

    @torch.inference_mode()
    def step(self, inputs: StepInputs) -> torch.Tensor:
        """Run one step and return the logits [R, V] of ``inputs.logits_rows``.

        With ``inputs.raw_logits`` they are the head's product alone, which the caller corrects and then gives
        to :func:`bend`.
        """
        device = self.weights.embedding.device
        x = self.embedded(inputs)
        work = self._work(
            sent(inputs.positions, device),
            self._plan_attention(inputs, device),
            self._planner.plan(inputs),
        )
        experts = expert_delta(self._pool, self._shapes, inputs.lora, inputs.query_start)
        work = replace(work, experts=experts)
        layers, norm = self.layers_of(inputs.merged)
        final = self._final(self._run(layers, x, work), norm, work.lora, sent(inputs.logits_rows, device))
        return self.logits_of(final, inputs)

    def decode(
        self, x: torch.Tensor, positions: torch.Tensor, plan: AttentionPlan, lora: LoraDelta | None
    ) -> torch.Tensor:
        """What the head is applied to [T, D], of a step that decodes on the base's own weights.

        Args:
            x: [T, D] as it enters the first layer.
            positions: [T].
            plan: how the rows attend.
            lora: what adapters add, if any.
        """
        x = self._run(self.layers, x, self._work(positions, plan, lora))
        return self._final(x, self.final_norm, lora, None)

    def embedded(self, inputs: StepInputs) -> torch.Tensor:
        """What enters the first layer [T, D]; virtual tokens without rows are in the cache then."""
        device = self.weights.embedding.device
        fill_cache(self._pool, self.cache, inputs.cached)
        x = self.embed(sent(inputs.token_ids, device))
        if inputs.embedded is not None:
            given = inputs.embedded
            x[sent(given.rows, device)] = given.values.to(x.dtype)
        return x

    def layers_of(self, merged: MergedWeights | None) -> tuple[Sequence[Layer], torch.Tensor]:
        """The layers and the final norm that rows run on which are ``merged``, or the base's."""
        assert merged is None or isinstance(merged, MergedLayers)
        return (self.layers, self.final_norm) if merged is None else (merged.layers, merged.final_norm)

    def logits_of(self, final: torch.Tensor, inputs: StepInputs) -> torch.Tensor:
        """The logits of a step [R, V], of what the head is applied to [R, D]; see :meth:`step`."""
        logits = self.lm_head(final)
        if inputs.hidden is not None:
            inputs.hidden.copy_(final)
        return logits if inputs.raw_logits else bend(logits, self.weights)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The base's embeddings [T, D] of ``token_ids`` [T], as they enter the first layer."""
        x = F.embedding(token_ids, self.weights.embedding)
        return x if self.weights.embedding_scale == 1.0 else x * self.weights.embedding_scale

    def _work(self, positions: torch.Tensor, plan: AttentionPlan, lora: LoraDelta | None) -> Work:
        tables = self.weights.cos, self.weights.sin
        cos, sin = (t[:, positions].unsqueeze(2).to(self.weights.embedding.dtype) for t in tables)
        return Work(tuple(zip(cos, sin, strict=True)), plan, lora)

    def _run(self, layers: Sequence[Layer], x: torch.Tensor, work: Work) -> torch.Tensor:
        """Hidden states [T, D] behind the last layer, of the embeddings ``x`` [T, D]."""
        for layer, kv in zip(layers, self.cache, strict=True):
            x = layer.forward(x, work, kv)
        return x

    def _final(
        self, x: torch.Tensor, norm: torch.Tensor, lora: LoraDelta | None, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """The final hidden states of ``rows`` (None: all of them) that the output head is applied to."""
        module = self.weights.norm_modules(len(self.layers))[0]
        change = None if lora is None else lora.norm_change(module)
        if change is not None:  # the adapters' part is known by the rows of the step
            x = rms_norm(x, norm, self.weights.eps, change)
            return x if rows is None else x[rows]
        return rms_norm(x if rows is None else x[rows], norm, self.weights.eps)


class MergedLayers:
    """Merged weights for the reference step: layers with other matrices in some places."""

    def __init__(self, base: Sequence[Layer], weights: DecoderWeights, dense: Dense) -> None:
        self.layers = list(base)
        self.final_norm = weights.norm_weight(weights.final_norm)
        self.weights = weights
        self._dense = dense
        self.nbytes = 0

    def put(
        self,
        modules: Sequence[int],
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
    ) -> None:
        expert = self.weights.expert_place(modules[0])
        if expert is not None:
            matrix = PackedLinear(weights[0], None)
            self.layers[expert.layer] = self.layers[expert.layer].with_expert(expert, matrix)
            self.nbytes += matrix.nbytes
            return
        layer, name = self.weights.place(modules[0])
        if layer == len(self.layers):
            self.final_norm = self.weights.norm_weight(weights[0])
            return
        if name not in self.layers[layer].matrices:
            self.layers[layer] = self.layers[layer].with_norm(name, weights[0])
            return
        whole = self._dense(torch.cat(tuple(weights)), stack_biases(weights, biases))
        self.layers[layer] = self.layers[layer].with_matrix(name, whole)
        self.nbytes += whole.nbytes
