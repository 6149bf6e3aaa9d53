"""A layer of routed experts with adapters beside its weights: what merged ones are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manylora.adapters.format.experts import ExpertStack
from manylora.adapters.merge.weights import Deltas

Noise = Callable[[torch.Size], Tensor]  # by what share of themselves values of that shape are off
ChangedExperts = Mapping[str, tuple[Deltas, ...]]  # "gate_up_proj", "down_proj" -> changes to every expert


def changed_experts(
    stacks: Iterable[ExpertStack], deltas: Mapping[str, Deltas]
) -> dict[str, dict[str, tuple[Deltas, ...]]]:
    """By the modules of experts that ``deltas`` change, what becomes of their parameters."""
    found: dict[str, dict[str, tuple[Deltas, ...]]] = {}
    for stack in stacks:
        changes = tuple(deltas.get(name, ()) for name in stack.matrices)
        found.setdefault(stack.module, {})[stack.name.rpartition(".")[2]] = changes
    return {module: parts for module, parts in found.items() if any(map(any, parts.values()))}


def add_beside_experts(
    changes: ChangedExperts, noise: Noise | None, module: Any, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    """A forward hook: the output of a module of experts with the adapters beside its weights.

    Args:
        changes: to its parameters.
        noise: by what share weights and changes are off, None for not at all.
        module: of transformers, with ``gate_up_proj`` [E, 2 I, D], ``down_proj`` [E, D, I] and ``act_fn``.
        args: hidden states [T, D], each row's experts [T, k] and their shares [T, k].
        output: [T, D], of the base, of which only the dtype is used.
    """
    x, chosen, shares = args
    total = torch.zeros_like(x, dtype=torch.float32)
    for expert in chosen.unique().tolist():
        rows, place = torch.where(chosen == expert)
        gate, up = _product("gate_up_proj", expert, x[rows], (changes, noise, module)).chunk(2, dim=-1)
        own = _product("down_proj", expert, module.act_fn(gate) * up, (changes, noise, module))
        total.index_add_(0, rows, own.float() * shares[rows, place, None].float())
    return total.to(output.dtype)


def _product(name: str, expert: int, x: Tensor, beside: tuple[ChangedExperts, Noise | None, Any]) -> Tensor:
    """``W x + Σ w_k ΔW_k x`` of one expert's matrix, rounded to the dtype of ``x`` as the module rounds."""
    changes, noise, module = beside
    weight = getattr(module, name)[expert].float()
    if noise is not None:
        weight = weight + weight * noise(weight.shape)
    change = torch.zeros(len(x), len(weight))
    for delta, share in changes[name][expert]:
        change += share * (x.float() @ delta.a.float().T) @ delta.scaled_b().T
    if noise is not None:
        change = change + change * noise(change.shape)
    return (F.linear(x.float(), weight) + change).to(x.dtype)
