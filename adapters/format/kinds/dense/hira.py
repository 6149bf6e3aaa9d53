"""HiRA: W is multiplied, entry by entry, with a matrix of low rank (https://openreview.net/forum?id=TwJrTz9cRS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import EXCLUDE
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.plans import slot
from manylora.adapters.format.kinds.ranks import PerModule, read_ranks
from manylora.adapters.format.kinds.rows import EVERY_KIND, RANK, RANK_PATTERN, no_effect, training_only
from manylora.adapters.format.kinds.updates import DenseOfWeight
from manylora.adapters.format.update import KindLayout, ModulePlan, NoUpdate, WeightUpdate


@dataclass(frozen=True, slots=True)
class Hira:
    """What a config of HiRA says."""

    ranks: PerModule[int]

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        ranks = self.ranks.of(targets, faults)
        return KindLayout({module.name: self._plan(module, ranks[module.name]) for module in targets})

    def _plan(self, module: TargetModule, rank: int) -> ModulePlan:
        width_in, width_out, r = module.in_features, module.out_features, self.ranks.default
        # PEFT leaves rank_pattern out of account for the first adapter of a model.
        slots = {
            "A": slot(module, "hira_A", rank, width_in, others=((r, width_in),)),
            "B": slot(module, "hira_B", width_out, rank, others=((width_out, r),)),
        }
        return ModulePlan(slots, partial(_update, module), max(rank, r))


def _update(module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
    return DenseOfWeight(module, partial(_change, tensors), tensors["A"].shape[0])


def _change(tensors: Mapping[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    a, b = tensors["A"].float(), tensors["B"].float()
    if a.shape[0] != b.shape[1]:
        raise NoUpdate("hira_A and hira_B differ in rank")
    return weight * (b @ a)


def _parse(reader: ConfigReader) -> Hira:
    return Hira(read_ranks(reader, 32))


HIRA = WeightKind(
    "HIRA",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        RANK,
        RANK_PATTERN,
        no_effect("fan_in_fan_out", "A is [r, in] and B is [out, r] on nn.Linear and Conv1D alike"),
        *training_only("hira_dropout", "init_weights"),
    ),
    parse=_parse,
    endings=("hira_A", "hira_B"),
    form="W ⊙ (B A)",
    rank="none: ΔW as it is",
    cost="that of the whole weight",
)
