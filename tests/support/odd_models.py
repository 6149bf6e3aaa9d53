"""Tiny models at the edges of what is numerically usual, which right decoders have to be accepted for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _huge_embeddings(model: Any) -> None:
    model.get_input_embeddings().weight.mul_(1000)


def _tiny_logits(model: Any) -> None:
    model.get_output_embeddings().weight.mul_(1e-6)


def _nearly_equal_rows(model: Any) -> None:
    head = model.get_output_embeddings().weight
    head.copy_(head[:1] + 1e-3 * head)


def _equal_rows(model: Any) -> None:
    head = model.get_output_embeddings().weight
    head.copy_(head[:1].expand_as(head).clone())


def _no_logits(model: Any) -> None:
    model.get_output_embeddings().weight.zero_()


def _massive_channel(model: Any) -> None:
    """One channel of the residual stream is far larger than all others, as in real models."""
    model.get_input_embeddings().weight[:, 3] = 500.0


def _wide_weights(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed" not in name:
            parameter.mul_(6)


def _narrow_weights(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(0.02)


def _sharp_attention(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "q_proj.weight" in name or "k_proj.weight" in name:
            parameter.mul_(8)


# What is done to a model, and settings that it is made with.
ODD: dict[str, tuple[Callable[[Any], None], dict[str, Any]]] = {
    "huge embeddings": (_huge_embeddings, {}),
    "tiny logits": (_tiny_logits, {"tie_word_embeddings": False}),
    "nearly equal rows": (_nearly_equal_rows, {"tie_word_embeddings": False}),
    "equal rows": (_equal_rows, {"tie_word_embeddings": False}),
    "no logits": (_no_logits, {"tie_word_embeddings": False}),
    "massive channel": (_massive_channel, {"tie_word_embeddings": False}),
    "wide weights": (_wide_weights, {}),
    "narrow weights": (_narrow_weights, {}),
    "sharp attention": (_sharp_attention, {}),
    "deep": (lambda _: None, {"num_hidden_layers": 24}),
    "deep and narrow": (lambda _: None, {"num_hidden_layers": 40, "head_dim": 16, "hidden_size": 32}),
    "deep and wide weights": (_wide_weights, {"num_hidden_layers": 16}),
    "one layer": (lambda _: None, {"num_hidden_layers": 1}),
}


def make_odd(model: Any, kind: str) -> None:
    """Change a model in place."""
    with torch.no_grad():
        ODD[kind][0](model)
