"""From checked tensors to what they change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from manylora.adapters.format.base import BaseModel, TargetModule
from manylora.adapters.format.update import ModulePlan
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.format.weights.expected_tensors import Layout, projection_shapes
from manylora.adapters.format.weights.read_experts import read_expert_layers, read_stack
from manylora.adapters.format.weights.tensors import TensorFile

_OF_DELTA = ("bias", "b_bias")  # parts that are no matter of the update


def read_deltas(layout: Layout, base: BaseModel, file: TensorFile) -> dict[str, ModuleDelta]:
    """The change to each module of ``layout``, in the base's forward order, norms last."""
    projections = _projections(layout, base, file) if layout.config.kind == "VERA" else None
    shared = {part: file.tensor(slot.key) for part, slot in layout.shared.items()} if layout.plans else {}
    result = {}
    for module in (*base.modules.values(), *base.norms.values()):
        parts = layout.modules.get(module.name)
        if parts is None:
            continue
        target, plan = layout.targets.get(module.name), layout.plans.get(module.name)
        tensors = {part: file.tensor(slot.key) for part, slot in parts.items()}
        if plan is not None:
            result[module.name] = _updated(module, tensors, plan, shared)
            continue
        if projections is not None and target is not None:
            tensors["a"] = projections[0][:, : module.in_features]
            tensors["b"] = projections[1][: module.out_features]
        result[module.name] = _delta(module, tensors, 1.0 if target is None else target.scaling)
    for stack in base.experts.values():
        if stack.name in layout.modules:
            result |= read_stack(stack, layout, file)
    return result | read_expert_layers(layout, base, file)


def _updated(
    module: TargetModule,
    tensors: Mapping[str, torch.Tensor],
    plan: ModulePlan,
    shared: Mapping[str, torch.Tensor],
) -> ModuleDelta:
    own = {part: tensor for part, tensor in tensors.items() if part not in _OF_DELTA}
    delta = _delta(module, {part: tensor for part, tensor in tensors.items() if part in _OF_DELTA}, 1.0)
    return replace(delta, update=plan.build({**shared, **own}))


def _delta(module: TargetModule, tensors: Mapping[str, torch.Tensor], scaling: float) -> ModuleDelta:
    given: dict[str, Any] = {part: tensor for part, tensor in tensors.items() if part not in ("a", "b")}
    a = tensors.get("a", torch.empty(0, module.in_features))
    b = tensors.get("b", torch.empty(module.out_features, 0))
    return ModuleDelta(a, b, scaling, **{part: tensor.flatten() for part, tensor in given.items()})


def _projections(layout: Layout, base: BaseModel, file: TensorFile) -> tuple[torch.Tensor, torch.Tensor]:
    """VeRA's shared A [r, widest in] and B [widest out, r], read or drawn from their seed."""
    key = layout.config.projection_key
    if key is None:
        return file.tensor(layout.shared["a"].key), file.tensor(layout.shared["b"].key)
    generator = torch.Generator().manual_seed(key)
    a, b = (kaiming(shape, generator) for shape in projection_shapes(layout.config, layout.targets, base))
    return a, b


def kaiming(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """The very draws of PEFT (``tuners/vera/model.py``): Kaiming-uniform over the second dimension."""
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
