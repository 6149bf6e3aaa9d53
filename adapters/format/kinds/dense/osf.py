"""OSF: the smaller singular values and vectors of W are trained anew (https://arxiv.org/abs/2504.07097).

W' = (the part of W with the largest singular values) + U diag(S) V.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import COMMON, MODULES_TO_SAVE, TARGETS, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.decompositions import singular
from manylora.adapters.format.kinds.plans import DECOMPOSES, no_change, refuse, slot, too_large
from manylora.adapters.format.kinds.ranks import PerModule
from manylora.adapters.format.kinds.rows import no_effect, training_only
from manylora.adapters.format.kinds.updates import DenseOfWeight, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, WeightUpdate


@dataclass(frozen=True, slots=True)
class Osf:
    """What a config of OSF says."""

    kept: PerModule[float]  # a number of singular values; up to 1, if no whole number is written: a share

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        said = self.kept.of(targets, faults)
        kept = {module.name: _count(said[module.name], full_rank(module)) for module in targets}
        empty = [module for module in targets if kept[module.name] == 0]
        refuse("effective_rank leaves nothing to keep in", empty, faults)
        refuse(f"OSF {DECOMPOSES}", too_large(targets), faults)
        return KindLayout({module.name: _plan(module, kept[module.name]) for module in targets})


def _count(said: float, side: int) -> int:
    """Singular values that are kept."""
    if said < 0:
        return int(side * -said)
    return min(side, int(said))


def _plan(module: TargetModule, kept: int) -> ModulePlan:
    count = full_rank(module) - kept
    slots = {
        "u": slot(module, "osf_svd_params.U_low", module.out_features, count),
        "s": slot(module, "osf_svd_params.S_low", count),
        "v": slot(module, "osf_svd_params.V_low", count, module.in_features),
    }
    return ModulePlan(slots, partial(_update, module, kept))


def _update(module: TargetModule, kept: int, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
    if kept == full_rank(module):
        return no_change(module)
    return DenseOfWeight(module, partial(_change, tensors, kept))


def _change(tensors: Mapping[str, torch.Tensor], kept: int, weight: torch.Tensor) -> torch.Tensor:
    u, s, v = singular(weight)
    before = (u[:, kept:] * s[kept:]) @ v[kept:]
    return (tensors["u"].float() * tensors["s"].float()) @ tensors["v"].float() - before


def _kept(reader: ConfigReader, where: str, value: object) -> float:
    """How many are kept as PEFT reads it; a share of all as its negative."""
    number = reader.number_of(where, value, least=0.0, most=1e9)
    return -number if isinstance(number, float) and 0 < number <= 1 else float(int(number))


def _parse(reader: ConfigReader) -> Osf:
    kept = reader.value("effective_rank", 0.5)
    default = _kept(reader, "effective_rank", kept)
    patterns = reader.pattern("rank_pattern", partial(_kept, reader))
    # PEFT searches these patterns anywhere in the module's name.
    return Osf(PerModule("rank_pattern", default, {f".*({key}).*": each for key, each in patterns.items()}))


_SERVED = Treatment.SERVED

OSF = WeightKind(
    "OSF",
    options=(
        *COMMON,
        TARGETS[0],
        MODULES_TO_SAVE,
        Option(
            "effective_rank",
            _SERVED,
            "singular values that stay as they are, or their share; half of them without it",
        ),
        Option("rank_pattern", _SERVED, "as effective_rank, where an expression is found in a module's name"),
        no_effect("target_svd_config", "PEFT does not read it"),
        *training_only("init_weights"),
    ),
    parse=_parse,
    endings=("osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low"),
    form="U S V - (the part of W with the smaller singular values)",
    rank="none: ΔW as it is",
    cost="that of the whole weight; seconds to minutes to load",
)
