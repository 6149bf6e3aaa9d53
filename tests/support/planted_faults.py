"""Faults that a decoder could have, planted in the model that a decoder is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


def _layers(model: Any) -> Iterator[Any]:
    yield from model.model.layers


def _rope(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(1.5)


def _scale(model: Any) -> None:
    for layer in _layers(model):
        layer.self_attn.scaling *= 1.5


def _mask(model: Any) -> None:
    """Rows see the last eight tokens only."""
    model.config.sliding_window = 8


def _window(model: Any) -> None:
    model.config.sliding_window = None


def _norm(model: Any) -> None:
    for layer in _layers(model):
        layer.post_attention_layernorm.weight.mul_(torch.linspace(0.5, 1.5, layer.hidden_size))


def _epsilon(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.5
    model.config.rms_norm_eps = 0.5


def _bias(model: Any) -> None:
    for layer in _layers(model):
        layer.self_attn.q_proj.bias.zero_()
        layer.self_attn.o_proj.bias.zero_()


def _head_order(model: Any) -> None:
    for layer in _layers(model):
        weight = layer.self_attn.q_proj.weight
        weight.copy_(weight.unflatten(0, (4, -1)).roll(1, 0).flatten(0, 1))


def _key_heads(model: Any) -> None:
    for layer in _layers(model):
        weight = layer.self_attn.v_proj.weight
        weight.copy_(weight.unflatten(0, (2, -1)).flip(0).flatten(0, 1))


def _head_norms(model: Any) -> None:
    for layer in _layers(model):
        layer.self_attn.q_norm.weight.mul_(torch.linspace(0.5, 1.5, 32))


def _tied_head(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.roll(1, 0), requires_grad=False)


def _activation(model: Any) -> None:
    for layer in _layers(model):
        layer.mlp.act_fn = nn.GELU()


def _gate(model: Any) -> None:
    """Gate and up projection in each other's place."""
    for layer in _layers(model):
        layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj


def _residual(model: Any) -> None:
    """The residual stream goes on with a part of it lost."""

    def less(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output - 0.3 * args[0]

    for layer in _layers(model):
        layer.register_forward_hook(less)


def _embedding(model: Any) -> None:
    model.model.embed_tokens.register_forward_hook(lambda _module, _args, output: output * 2)


# By name: the family whose models can have the fault, and what plants it.
FAULTS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "rope": ("llama", _rope),
    "scale": ("llama", _scale),
    "mask": ("mistral", _mask),
    "window": ("mistral", _window),
    "norm": ("llama", _norm),
    "epsilon": ("llama", _epsilon),
    "bias": ("llama-untied-bias", _bias),
    "head order": ("llama", _head_order),
    "key heads": ("llama", _key_heads),
    "head norms": ("qwen3", _head_norms),
    "tied head": ("llama", _tied_head),
    "activation": ("llama", _activation),
    "gate": ("llama", _gate),
    "residual": ("llama", _residual),
    "embedding": ("llama", _embedding),
}


def plant(model: Any, fault: str) -> None:
    """Change a model in place, so that it computes what a decoder with the fault would."""
    with torch.no_grad():
        FAULTS[fault][1](model)
