"""BEFT: a trained vector is added to a module's outputs, whether the base has a bias there or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import COMMON, MODULES_TO_SAVE, TARGETS
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.plans import no_change, slot
from manylora.adapters.format.kinds.rows import training_only
from manylora.adapters.format.update import KindLayout, ModulePlan


@dataclass(frozen=True, slots=True)
class Beft:
    """What a config of BEFT says: nothing but the modules."""

    def lay_out(self, targets: Sequence[TargetModule], _faults: Faults, /) -> KindLayout:
        return KindLayout({module.name: _plan(module) for module in targets})


def _plan(module: TargetModule) -> ModulePlan:
    slots = {"b_bias": slot(module, "beft_bias", 1, module.out_features)}
    return ModulePlan(slots, lambda _: no_change(module))


def _parse(_: ConfigReader) -> Beft:
    return Beft()


BEFT = WeightKind(
    "BEFT",
    options=(*COMMON, TARGETS[0], MODULES_TO_SAVE, *training_only("init_weights")),
    parse=_parse,
    endings=("beft_bias",),
    form="0; a vector is added to the outputs",
    rank="0",
    cost="next to nothing",
)
