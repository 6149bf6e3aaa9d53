"""Laying out the tensors of kinds that store something else than A and B."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.faults import Faults, some
from manylora.adapters.format.kinds.updates import LowRank
from manylora.adapters.format.update import Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX

Shapes = tuple[tuple[int, ...], ...]
MAX_SIDE = 2048  # of a weight that is decomposed: the time grows with the cube
DECOMPOSES = f"needs the singular values of weights, which may have up to {MAX_SIDE} rows or columns"


def slot(module: TargetModule, ending: str, *shape: int, integers: bool = False, others: Shapes = ()) -> Slot:
    """The tensor of ``module`` whose name ends like that."""
    return Slot(f"{PREFIX}{module.name}.{ending}", shape, integers, others)


def no_change(module: TargetModule) -> WeightUpdate:
    """An update that leaves the weight as it is."""
    return LowRank(0, 0, lambda: (torch.empty(0, module.in_features), torch.empty(module.out_features, 0)))


def refuse(reason: str, modules: Iterable[TargetModule], faults: Faults) -> None:
    """A fault with that reason if there are such ``modules``, naming them."""
    names = [module.name for module in modules]
    if names:
        faults.add(f"{reason}: {some(names, len(names))}")


def too_large(modules: Iterable[TargetModule]) -> list[TargetModule]:
    """Those whose weights would take too long to decompose."""
    return [module for module in modules if min(module.in_features, module.out_features) > MAX_SIDE]
