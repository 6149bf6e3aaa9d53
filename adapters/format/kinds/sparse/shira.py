"""SHiRA: a few entries of W are trained (https://arxiv.org/abs/2406.13175)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import COMMON, MODULES_TO_SAVE, TARGETS, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.plans import refuse, slot
from manylora.adapters.format.kinds.rows import no_effect, training_only
from manylora.adapters.format.kinds.sparse.entries import SparseChange
from manylora.adapters.format.update import KindLayout, ModulePlan, NoUpdate, WeightUpdate


@dataclass(frozen=True, slots=True)
class Shira:
    """What a config of SHiRA says."""

    r: int

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        full = [m for m in targets if self._count(m) > m.in_features * m.out_features]
        refuse(f"r={self.r} means more numbers than there are in the weights of", full, faults)
        return KindLayout({module.name: self._plan(module) for module in targets})

    def _count(self, module: TargetModule) -> int:
        return self.r * (module.in_features + module.out_features)

    def _plan(self, module: TargetModule) -> ModulePlan:
        count = self._count(module)
        slots = {
            "values": slot(module, "shira_weight", count),
            # PEFT on Windows saves floats.
            "places": replace(slot(module, "shira_indices", 2, count, integers=True), as_floats=True),
        }
        return ModulePlan(slots, partial(_update, module))


def _update(module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
    places = tensors["places"].long()
    if not torch.equal(places.to(tensors["places"].dtype), tensors["places"]):
        raise NoUpdate("shira_indices are no whole numbers")
    rows, columns = places
    return SparseChange(rows, columns, tensors["values"], (module.out_features, module.in_features))


def _parse(reader: ConfigReader) -> Shira:
    return Shira(reader.count("r", 32))


SHIRA = WeightKind(
    "SHIRA",
    options=(
        *COMMON,
        TARGETS[0],
        MODULES_TO_SAVE,
        Option("r", Treatment.SERVED, "r (in + out) entries of each weight are trained"),
        no_effect("fan_in_fan_out", "indices are of W [out, in]"),
        no_effect("mask_type", "the places are saved"),
        no_effect("random_seed", "the places are saved"),
        *training_only("init_weights"),
    ),
    parse=_parse,
    endings=("shira_weight", "shira_indices"),
    form="a few entries",
    rank="rows or columns with an entry, whichever are fewer; or ΔW as it is where that takes less",
    cost="that of the whole weight, or less where entries lie in few rows or columns",
)
