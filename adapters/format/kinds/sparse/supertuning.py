"""Super-Tuning: the largest or smallest entries of W are trained, with a LoRA beside them on request."""

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
from manylora.adapters.format.kinds.plans import refuse, slot
from manylora.adapters.format.kinds.rows import training_only
from manylora.adapters.format.kinds.sparse.entries import SparseChange
from manylora.adapters.format.kinds.updates import LowRank, full_rank, whole
from manylora.adapters.format.update import KindLayout, ModulePlan, WeightUpdate


@dataclass(frozen=True, slots=True)
class Supertuning:
    """What a config of Super-Tuning says."""

    sparsity: float
    r: int  # of the LoRA; 0: none
    alpha: float

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        none = [module for module in targets if self._count(module) < 1]
        refuse(f"sparsity={self.sparsity} leaves no entry of the weights of", none, faults)
        return KindLayout({module.name: self._plan(module) for module in targets})

    def _count(self, module: TargetModule) -> int:
        return int(module.in_features * module.out_features * (1 - self.sparsity))

    def _plan(self, module: TargetModule) -> ModulePlan:
        count = self._count(module)
        slots = {
            "values": slot(module, "supertuning_values", count),
            "places": slot(module, "supertuning_indices", count, integers=True),
        }
        if self.r:
            slots["a"] = slot(module, "supertuning_lora_A.weight", self.r, module.in_features)
            slots["b"] = slot(module, "supertuning_lora_B.weight", module.out_features, self.r)
        return ModulePlan(slots, partial(self._update, module), self.r)

    def _update(self, module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        places = tensors["places"].long()
        rows = places.div(module.in_features, rounding_mode="floor")
        shape = (module.out_features, module.in_features)
        sparse = SparseChange(rows, places - rows * module.in_features, tensors["values"], shape)
        if not self.r:
            return sparse
        rank = min(sparse.rank + self.r, full_rank(module))
        return LowRank(rank, self.r, partial(self._both, sparse, rank, tensors))

    def _both(
        self, sparse: SparseChange, rank: int, tensors: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = sparse.factors(None)
        a = torch.cat((a, tensors["a"].float()))
        b = torch.cat((b, tensors["b"].float() * (self.alpha / self.r)), dim=1)
        return (a, b) if len(a) == rank else whole(b @ a)


def _parse(reader: ConfigReader) -> Supertuning:
    if not reader.flag("save_precomputed_indices", True):
        reader.wrong(
            "save_precomputed_indices",
            "true: which entries are trained is not saved, and depends on how the base's were rounded then",
            False,
        )
    r = reader.value("r", None)
    rank = 0 if r is None else reader.rank("r", r)
    alpha = reader.number("lora_alpha", 2.0 * rank)
    return Supertuning(reader.number("sparsity", 0.99, least=0.0, most=1.0), rank, alpha)


_SERVED = Treatment.SERVED

SUPERTUNING = WeightKind(
    "SUPERTUNING",
    options=(
        *COMMON,
        TARGETS[0],
        MODULES_TO_SAVE,
        Option("sparsity", _SERVED, "the share of each weight's entries that stay as they are"),
        Option("r", _SERVED, "of the LoRA beside it: 1 up to the server's --max-lora-rank; null: none"),
        Option("lora_alpha", _SERVED, "of that LoRA; the scaling is lora_alpha / r"),
        Option(
            "save_precomputed_indices",
            _SERVED,
            "true; where the entries are not saved they depend on how the base was rounded in training",
        ),
        *training_only("select_top", "lora_dropout", "init_weights"),
    ),
    parse=_parse,
    endings=(
        "supertuning_values",
        "supertuning_indices",
        "supertuning_lora_A.weight",
        "supertuning_lora_B.weight",
    ),
    form="a few entries + s B A",
    rank="rows or columns with an entry, whichever are fewer, + r; or ΔW as it is where that takes less",
    cost="that of the whole weight, or less where entries lie in few rows or columns",
)
