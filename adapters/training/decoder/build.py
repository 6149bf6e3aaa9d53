"""From a Hugging Face model, with PEFT's LoRA on it or matrices of several jobs, to the fused decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from manylora.adapters.training.decoder.attention import Heads
from manylora.adapters.training.decoder.decoder import FusedDecoder
from manylora.adapters.training.decoder.layer import Layer, Norm
from manylora.adapters.training.decoder.projection import Member, Projection
from manylora.adapters.training.decoder.weights import (
    Nf4Weight,
    PlainWeight,
    Weight,
    is_nf4,
    may_be_kept,
)
from manylora.adapters.training.model.pairs import Pair

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUT = ("self_attn.o_proj",)
WIDE = ("mlp.gate_proj", "mlp.up_proj")
DOWN = ("mlp.down_proj",)
ADAPTED = frozenset((*ATTENTION, *OUTPUT, *WIDE, *DOWN))  # layers that adapters may be on

Adapter = Mapping[str, Pair]  # module of the base -> what is trained in it


class DecoderBuilder:
    """Builds the decoder of one model; the model's own modules keep working, on the same weights."""

    def __init__(
        self, model: Any, adapters: Sequence[Adapter], *, dropout: float, is_checkpointed: bool
    ) -> None:
        """``model``: the causal LM itself, its layers wrapped by PEFT or not."""
        self._model = model
        self._adapters = adapters
        self._dropout = dropout
        self._is_checkpointed = is_checkpointed
        self._dtype = model.model.norm.weight.dtype
        self._is_kept = self._may_keep_dequantized()

    def build(self) -> FusedDecoder:
        """The decoder, on the matrices that the adapters have now."""
        body, head = self._model.model, self._model.lm_head
        layers = tuple(self._layer(index, layer) for index, layer in enumerate(body.layers))
        return FusedDecoder(
            embedding=body.embed_tokens,
            rotary=body.rotary_emb,
            layers=layers,
            last=_norm(body.norm),
            head=head.weight.detach(),
            head_bias=None if head.bias is None else head.bias.detach(),
            dtype=self._dtype,
            is_checkpointed=self._is_checkpointed,
        )

    def _layer(self, index: int, layer: Any) -> Layer:
        attention = layer.self_attn
        config = self._model.config
        norms = None
        if hasattr(attention, "q_norm"):
            norms = (_norm(attention.q_norm), _norm(attention.k_norm))
        heads = Heads(
            config.num_attention_heads, config.num_key_value_heads, attention.head_dim, attention.scaling
        )
        return Layer(
            before=_norm(layer.input_layernorm),
            qkv=self._projection(index, layer, ATTENTION),
            head_norms=norms,
            heads=heads,
            output=self._projection(index, layer, OUTPUT),
            between=_norm(layer.post_attention_layernorm),
            wide=self._projection(index, layer, WIDE),
            down=self._projection(index, layer, DOWN),
        )

    def _projection(self, index: int, layer: Any, names: tuple[str, ...]) -> Projection:
        linear = [unwrapped(layer.get_submodule(name)) for name in names]
        members: list[list[Member]] = [[] for _ in self._adapters]
        low = 0
        for name, module in zip(names, linear, strict=True):
            for found, adapter in zip(members, self._adapters, strict=True):
                pair = adapter.get(f"model.layers.{index}.{name}")
                if pair is not None:
                    found.append(Member(low, pair))
            low += module.out_features
        biases = [module.bias for module in linear if module.bias is not None]
        return Projection(
            self._weight(linear),
            torch.cat([bias.detach() for bias in biases]) if biases else None,
            tuple(tuple(found) for found in members),
            self._dropout,
            is_output_kept=names in {ATTENTION, WIDE},
        )

    def _weight(self, linear: Sequence[Any]) -> Weight:
        if is_nf4(linear[0]):
            return Nf4Weight(linear, self._dtype, is_kept=self._is_kept)
        return PlainWeight(linear)

    def _may_keep_dequantized(self) -> bool:
        layers = [module for module in self._model.model.modules() if is_nf4(module)]
        return bool(layers) and may_be_kept(layers, self._dtype, self._model.lm_head.weight.device)


def unwrapped(module: Any) -> Any:
    """The base's own layer, under PEFT's."""
    return getattr(module, "base_layer", module)


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), float(module.variance_epsilon))
