"""From checked tensors to what they change of routed experts, under either of their names."""

from __future__ import annotations

import torch

from manylora.adapters.format.base import BaseModel
from manylora.adapters.format.experts import ExpertStack, Part
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.format.weights.expected_tensors import Layout
from manylora.adapters.format.weights.tensors import TensorFile


def read_stack(stack: ExpertStack, layout: Layout, file: TensorFile) -> dict[str, ModuleDelta]:
    """The change to each expert's matrix of a parameter that the adapter targets.

    In A [E r, in] the experts stand one after the other, in B [out, r E] every rank has them side by side.
    """
    parts, target = layout.modules[stack.name], layout.targets[stack.name]
    a = file.tensor(parts["a"].key).view(stack.experts, target.rank, stack.in_features)
    b = file.tensor(parts["b"].key).view(stack.out_features, target.rank, stack.experts)
    return {name: ModuleDelta(a[i], b[:, :, i], target.scaling) for i, name in enumerate(stack.matrices)}


def read_expert_layers(layout: Layout, base: BaseModel, file: TensorFile) -> dict[str, ModuleDelta]:
    """The same of the linear layers that experts were: gate and up become one matrix of both their ranks."""
    found: dict[str, dict[Part, ModuleDelta]] = {}
    for name in layout.targets.keys() & base.expert_layers.keys():
        layer, parts = base.expert_layers[name], layout.modules[name]
        a, b = (file.tensor(parts[part].key) for part in ("a", "b"))
        matrix = layer.stack.matrices[layer.expert]
        found.setdefault(matrix, {})[layer.part] = ModuleDelta(a, b, layout.targets[name].scaling)
    ordered = (matrix for stack in base.experts.values() for matrix in stack.matrices if matrix in found)
    return {matrix: _joined(found[matrix]) for matrix in ordered}


def _joined(parts: dict[Part, ModuleDelta]) -> ModuleDelta:
    if Part.DOWN in parts:
        return parts[Part.DOWN]
    given = [(part, parts[part]) for part in (Part.GATE, Part.UP) if part in parts]
    half, width = given[0][1].b.shape[0], sum(delta.rank for _, delta in given)
    b = torch.zeros(2 * half, width)
    column = 0
    for part, delta in given:
        first = 0 if part is Part.GATE else half
        b[first : first + half, column : column + delta.rank] = delta.scaled_b()
        column += delta.rank
    return ModuleDelta(torch.cat([delta.a.float() for _, delta in given]), b)
