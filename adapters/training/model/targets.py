"""Which layers of a model the trainer's target_modules name."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from manylora.adapters.training.errors import TrainingConfigError

_ATTENTION = re.compile(r"(self_|cross_|encoder_)?(attn|attention)")


def targets(model: Any, wanted: tuple[str, ...]) -> str | list[str]:
    """What PEFT is given for ``target_modules``.

    Raises:
        TrainingConfigError: a name fits no module, or the model has no layers of the wanted kind.
    """
    if wanted == ("all-linear",):
        return "all-linear"
    linear = [name for name, module in model.named_modules() if _is_linear(module)]
    if wanted[0] in ("attention", "mlp"):
        found = block_layers(linear, attention=wanted[0] == "attention")
        if not found:
            raise TrainingConfigError(
                f"--target-modules {wanted[0]}: this model has no such layers; name them"
            )
        return found
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise TrainingConfigError(
                f"--target-modules {target}: no linear layer is called that; there are {ends}"
            )
    return list(wanted)


def block_layers(names: list[str], *, attention: bool) -> list[str]:
    """The names, from their block on, of the linear layers inside or outside of attention."""
    found = set()
    for name in names:
        before, _, inside = _last_number(name)
        if before and any(_ATTENTION.fullmatch(part) for part in inside.split(".")) == attention:
            found.add(inside)
    return sorted(found)


def _last_number(name: str) -> tuple[str, str, str]:
    """``model.layers.3.mlp.up_proj`` -> (``model.layers``, ``3``, ``mlp.up_proj``); empty before if none."""
    match = re.fullmatch(r"(.*)\.(\d+)\.(.*)", name)
    return (match[1], match[2], match[3]) if match else ("", "", name)


def has_conv1d(model: Any) -> bool:
    """Whether linear layers are GPT-2's Conv1D, whose weights are [in, out]."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear | Conv1D)


def linear_layers(model: Any) -> dict[str, Any]:
    """The linear layers of a model by name, the output head aside."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {n: m for n, m in model.named_modules() if _is_linear(m) and m is not head}
