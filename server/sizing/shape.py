"""The sizes of a base model that decide how much memory serving it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from manylora.server.kernels.inputs import BLOCK_SIZE, page_length
from manylora.server.kernels.reference.quantized import CodedLinear

# NF4: half a byte, an 8-bit scale for every 64 weights, and an fp32 one for every 256 of those.
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
_WEIGHT_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp32": 4.0, "int8": 1.0, "nf4": _NF4_BYTES}
FORMATS = tuple(_WEIGHT_BYTES)
_ITEM_BYTES = {"fp32": 4}  # of what is not quantized, and of activations; others: 2


@dataclass(frozen=True)
class BaseShape:
    """A decoder's sizes. Counts of elements, not of bytes."""

    layers: int
    width: int  # D, of the hidden states
    inner: int  # I, of an MLP; of all experts that a row takes together
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int  # tokens the model allows
    parameters: int  # tied tables counted once
    linear: int  # of the linear layers in the blocks, which are what is quantized and merged
    pages: int  # elements that a rank-1 piece of an adapter of all of them takes in the pool
    outputs: int  # of these layers, rows of all their weights: each has a scale in 8 bits

    @classmethod
    def of(cls, config: Any, model: nn.Module) -> BaseShape:
        """The shape of ``model`` with this transformers ``config``; on the meta device it takes no memory."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        head = model.get_output_embeddings()  # type: ignore[operator]
        modules = [
            m for m in model.modules() if isinstance(m, nn.Linear | Conv1D | CodedLinear) and m is not head
        ]
        sizes = [_in_and_out(m) for m in modules]
        width = text.hidden_size
        return cls(
            layers=text.num_hidden_layers,
            width=width,
            inner=_inner(text, width),
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or width // heads,
            vocabulary=text.vocab_size,
            context=getattr(text, "max_position_embeddings", None) or 0,
            parameters=sum(p.numel() for p in model.parameters()),
            linear=sum(i * o for i, o in sizes),
            pages=sum(page_length(i) + page_length(o) for i, o in sizes),
            outputs=sum(o for _, o in sizes),
        )

    def weight_bytes(self, form: str) -> int:
        """Bytes of the base in one of :data:`FORMATS`; int8 and nf4 keep tables and norms in 16 bits."""
        rest = (self.parameters - self.linear) * item_bytes(form)
        scales = 4 * self.outputs if form == "int8" else 0
        return int(self.linear * _WEIGHT_BYTES[form]) + rest + scales

    def block_bytes(self, form: str) -> int:
        """Bytes of K and V that one block takes over all layers."""
        return BLOCK_SIZE * 2 * self.layers * self.kv_heads * self.head_dim * item_bytes(form)

    def adapter_bytes(self, rank: int, form: str) -> int:
        """Bytes of an adapter of all linear layers in the pool."""
        return rank * self.pages * item_bytes(form)

    def copy_bytes(self, form: str) -> int:
        """Bytes of a merged copy, which is never quantized."""
        return self.linear * item_bytes(form)


def item_bytes(form: str) -> int:
    """Bytes of a number that is computed with, where the base is in one of :data:`FORMATS`."""
    return _ITEM_BYTES.get(form, 2)


def form_of(dtype: torch.dtype, quantize: str) -> str:
    """Which of :data:`FORMATS` a base in ``dtype`` is in, quantized or not."""
    if quantize in _WEIGHT_BYTES:
        return quantize
    return {torch.float32: "fp32", torch.float16: "fp16"}.get(dtype, "bf16")


def _in_and_out(module: Any) -> tuple[int, int]:
    """(in, out), however the weight is stored."""
    if isinstance(module, Conv1D):
        rows, columns = module.weight.shape
        return rows, columns
    return module.in_features, module.out_features


def _inner(text: Any, width: int) -> int:
    experts = getattr(text, "num_experts_per_tok", None)
    if experts:
        return int(experts * (getattr(text, "moe_intermediate_size", None) or text.intermediate_size))
    return int(
        getattr(text, "intermediate_size", None)
        or getattr(text, "ffn_dim", None)
        or getattr(text, "n_inner", None)
        or 4 * width
    )
