"""C3A: the change of W consists of circulant blocks (https://arxiv.org/abs/2407.19342)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import BIAS, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.plans import refuse, slot
from manylora.adapters.format.kinds.ranks import PerModule
from manylora.adapters.format.kinds.rows import EVERY_KIND, training_only
from manylora.adapters.format.kinds.updates import Dense
from manylora.adapters.format.update import KindLayout, ModulePlan, WeightUpdate


@dataclass(frozen=True, slots=True)
class C3a:
    """What a config of C3A says."""

    sizes: PerModule[int]

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        sizes = self.sizes.of(targets, faults)
        unfit = [m for m in targets if m.in_features % sizes[m.name] or m.out_features % sizes[m.name]]
        refuse("block_size does not divide inputs and outputs of", unfit, faults)
        return KindLayout({m.name: _plan(m, sizes[m.name]) for m in targets})


def _plan(module: TargetModule, size: int) -> ModulePlan:
    blocks = (module.out_features // size, module.in_features // size)
    return ModulePlan({"kernel": slot(module, "c3a_kernel", *blocks, size)}, partial(_update, module))


def _update(module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
    return Dense(module, partial(circulant, tensors["kernel"]))


def circulant(kernel: torch.Tensor) -> torch.Tensor:
    """The change [out, in] for ``kernel`` [m, n, size].

    Entry (i, j) of a block is the kernel's number (j - i) mod size, divided by the inputs.
    """
    _, blocks, size = kernel.shape
    place = (torch.arange(size)[None] - torch.arange(size)[:, None]) % size
    change = kernel.float()[:, :, place]  # [m, n, i, j]
    return change.transpose(1, 2).flatten(2).flatten(0, 1) / (blocks * size)


def _parse(reader: ConfigReader) -> C3a:
    return C3a(
        PerModule(
            "block_size_pattern",
            reader.count("block_size", 256, most=_ANY),
            reader.pattern("block_size_pattern", partial(reader.count_of, most=_ANY)),
        )
    )


_ANY = 1 << 62  # what divides a module's inputs is bounded by them
_SERVED = Treatment.SERVED

C3A = WeightKind(
    "C3A",
    options=(
        *EVERY_KIND,
        Option("block_size", _SERVED, "it has to divide inputs and outputs"),
        Option("block_size_pattern", _SERVED, "per module, with PEFT's matching"),
        BIAS,
        *training_only("init_weights"),
    ),
    parse=_parse,
    endings=("c3a_kernel",),
    form="circulant blocks / in",
    rank="none: ΔW as it is",
    cost="that of the whole weight",
)
