"""Which tensors of the base's files hold the experts that adapters change.

Most repositories have each expert's layers apart, gate and up among them, as models had them before
transformers 5; a few have the stacked parameters. What is written has the names that were read.
"""

from __future__ import annotations

from collections.abc import Mapping

from manylora.adapters.base_models.stored import StoredModel
from manylora.adapters.format.experts import ExpertLinear, Part
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.merge.weights import Deltas

PlacedExperts = dict[str, tuple[Deltas, ...]]  # tensor of the files -> changes to each matrix that it holds


def place_experts(stored: StoredModel, deltas: Mapping[str, Deltas]) -> tuple[PlacedExperts, list[str]]:
    """Where ``deltas``, by the names of the experts' matrices, go; and parameters that the files lack."""
    placed: PlacedExperts = {}
    absent = []
    for stack in stored.stacks.values():
        changes = tuple(deltas.get(name, ()) for name in stack.matrices)
        if not any(changes):
            continue
        whole, layers = stored.file_name(stack.name), stored.expert_layers(stack.name)
        if whole is not None:
            placed[whole] = changes
        elif not layers:
            absent.append(stack.name)
        for layer in layers:
            own = _of_layer(layer, changes[layer.expert])
            if own:
                placed[f"{layer.name}.weight"] = (own,)
    return placed, absent


def _of_layer(layer: ExpertLinear, changes: Deltas) -> Deltas:
    """What of the changes to an expert's matrix is to one of the layers that it is made of."""
    first = layer.out_features if layer.part is Part.UP else 0
    rows = slice(first, first + layer.out_features)
    parts = ((ModuleDelta(delta.a, delta.b[rows], delta.scaling), weight) for delta, weight in changes)
    return tuple((part, weight) for part, weight in parts if part.b.any())
