"""The adapters that the probe makes up: uneven ranks on some modules; one scales and adds constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from manylora.adapters.base_models.norms import norm_with
from manylora.adapters.fidelity.probing import Hook
from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.decoders.quantize import weight_of

_RANKS = ((0, 4, 9, 16, 1), (8, 0, 8), (0, 0, 2))  # of the modules in turn, for each adapter
COUNT = len(_RANKS)
_SCALED = 2  # the number of the adapter that also scales inputs or outputs and adds constants
_STRENGTH = 0.3  # of an adapter's output, relative to that of the module it changes

Members = Sequence[tuple[Mapping[str, ModuleDelta], float]]  # adapters by module name, with weights


def synthetic(
    model: Any, decoder: Decoder, number: int, scales_inputs: Callable[[int], bool] | None = None
) -> dict[str, ModuleDelta]:
    """Random weights whose output is about :data:`_STRENGTH` times that of the module, whatever its size.

    ``scales_inputs`` says of which modules, by number, inputs may be scaled; None: of all.
    """
    generator = torch.Generator().manual_seed(number)
    ranks = _RANKS[number]
    found = {}
    for index, module in enumerate(m for m in decoder.modules if not m.expert):
        rank = ranks[index % len(ranks)]
        vectors: dict[str, Any] = {**_vectors(module, index, generator)} if number == _SCALED else {}
        if scales_inputs is not None and not scales_inputs(index):
            vectors.pop("input_scale", None)
        if not module.linear and number == _SCALED:
            found[module.name] = _scaled_norm(module, model.get_submodule(module.name), generator)
        if not module.linear or not (rank or vectors):
            continue
        spread = float(weight_of(model.get_submodule(module.name)).float().std())
        a = torch.randn(rank, module.in_features, generator=generator) / math.sqrt(module.in_features)
        b = torch.randn(module.out_features, rank, generator=generator) * spread
        scaling = _STRENGTH * math.sqrt(module.in_features / max(rank, 1))
        found[module.name] = ModuleDelta(a, b, scaling, **vectors)
    return found


def _vectors(module: TargetModule, index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """One kind of vector for each module in turn."""

    def random(width: int, mean: float) -> torch.Tensor:
        return mean + _STRENGTH * torch.randn(width, generator=generator)

    return (
        {"output_scale": random(module.out_features, 1.0)},
        {"input_scale": random(module.in_features, 1.0)},
        {"b_bias": random(module.out_features, 0.0)},
        {},
    )[index % 4]


def _scaled_norm(module: TargetModule, norm: Any, generator: torch.Generator) -> ModuleDelta:
    """Another weight for a norm, off by about :data:`_STRENGTH` of itself, or of 1 where it is added to 1."""
    width, base = module.out_features, norm.weight.detach().float().cpu()
    size = base.abs().mean().clamp(min=0.1)
    scale = base + _STRENGTH * size * torch.randn(width, generator=generator)
    return ModuleDelta(torch.empty(0, width), torch.empty(width, 0), scale=scale)


def hooks_of(mixes: Sequence[Members]) -> dict[str, Hook]:
    """For each module that a mix changes, a hook that adds to each row of a batch the deltas of its mix."""
    names = {name for members in mixes for adapter, _ in members for name in adapter}
    return {
        name: _Deltas(
            [[(adapter[name], weight) for adapter, weight in members if name in adapter] for members in mixes]
        )
        for name in names
    }


class _Deltas:
    """A forward hook that adds to the rows of a batch the weighted changes of a module, in fp32."""

    def __init__(self, mixes: Sequence[Sequence[tuple[ModuleDelta, float]]]) -> None:
        self._mixes = mixes

    def __call__(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        x, y = (t.reshape(len(self._mixes), -1, t.shape[-1]) for t in (args[0], output.float()))
        changed = [
            y[row] + sum(weight * _change(delta, module, x[row], y[row]) for delta, weight in members)
            for row, members in enumerate(self._mixes)
        ]
        return torch.stack(changed).view(output.shape).to(output.dtype)


def _change(delta: ModuleDelta, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What an adapter without magnitudes and biases adds to ``y``, the output of ``module`` for ``x``."""

    def here(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(x.device)

    if delta.scale is not None:
        own: torch.Tensor = norm_with(module, here(delta.scale))(x)
        return own.float() - y

    change = (x.float() @ here(delta.a).T) @ here(delta.b).T * delta.scaling
    if delta.output_scale is not None:
        change = change * here(delta.output_scale)
    if delta.b_bias is not None:
        change = change + delta.scaling * here(delta.b_bias)
    if delta.output_scale is not None:
        change = change + (here(delta.output_scale) - 1) * y
    if delta.input_scale is not None:
        zero = module.forward(torch.zeros_like(x))
        change = change + module.forward((x * (here(delta.input_scale) - 1)).to(x.dtype)) - zero
    return change
