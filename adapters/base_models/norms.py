"""The norms of a Hugging Face model whose weight adapters change, and what they compute with another one."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

_TRIAL_ROWS = 3


def is_norm(module: nn.Module) -> bool:
    """Whether it looks like a norm over the last dimension, with a weight and perhaps a bias a value."""
    parameters = dict(module.named_parameters(recurse=False))
    weight = parameters.pop("weight", None)
    plain = isinstance(module, nn.LayerNorm) or "Norm" in type(module).__name__
    return (
        plain
        and weight is not None
        and weight.dim() == 1
        and all(name == "bias" and other.shape == weight.shape for name, other in parameters.items())
        and not list(module.children())
        and not list(module.buffers())
    )


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """Every norm of the model, by name."""
    return {name: module for name, module in model.named_modules() if name and is_norm(module)}


def norm_with(norm: Any, weight: torch.Tensor | None, bias: torch.Tensor | None = None) -> Any:
    """A copy of ``norm`` with another weight [D] and bias [D], where given, and without the hooks on it."""
    made = copy.copy(norm)
    made._parameters = dict(norm._parameters)
    made._forward_hooks = OrderedDict()
    made._forward_pre_hooks = OrderedDict()
    if weight is not None:
        made.weight = nn.Parameter(weight.to(norm.weight), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.to(norm.weight), requires_grad=False)
    return made


@torch.inference_mode()
def normalizer(norm: Any) -> Any | None:
    """A copy of ``norm`` that neither scales nor shifts: n(x), where ``norm`` computes n(x) ⊙ (w + c) + b.

    c is 0 of most norms, and 1 of Gemma's. None if ``norm`` is not of that form; found out by trying.
    """
    weight = norm.weight
    zeros, ones = torch.zeros_like(weight), torch.ones_like(weight)
    shift = None if getattr(norm, "bias", None) is None else zeros
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TRIAL_ROWS, len(weight), generator=generator).to(weight)
    other = (1 + torch.rand(len(weight), generator=generator)).to(weight)
    for offset, unit in ((0, ones), (1, zeros)):
        made = norm_with(norm, unit, shift)
        try:
            plain, expected = made(x), norm_with(norm, other, shift)(x)
        except (TypeError, ValueError, RuntimeError):  # it wants other arguments, or other shapes
            return None
        slack = 4 * torch.finfo(weight.dtype).eps
        if plain.shape == x.shape and torch.allclose(
            expected.float(), plain.float() * (other.float() + offset), rtol=slack, atol=slack
        ):
            return made
    return None
