"""GraLoRA: a low-rank product for each of k × k blocks of the weight (https://arxiv.org/abs/2505.20355).

Block (o, i) of ΔW is s B[o, i] A[i, o] of rank r / k. Taken together that is one product of rank k r, of
which a part of each factor is zero. ``hybrid_r`` adds a product over the whole weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import BIAS, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults, shown
from manylora.adapters.format.kinds.rows import EVERY_KIND, RANK, SAME_ON_CONV1D, training_only
from manylora.adapters.format.kinds.updates import Dense, Factors, LowRank, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX


@dataclass(frozen=True, slots=True)
class GraLora:
    """What a config of GraLoRA says."""

    rank: int
    whole_rank: int  # of the product over the whole weight; 0: none
    blocks: int  # k, along each side
    alpha: float

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        if self.rank % self.blocks:
            faults.add(f"gralora_k={self.blocks} does not divide r={self.rank}")
        odd = [m for m in targets if m.in_features % self.blocks or m.out_features % self.blocks]
        if odd:
            faults.add(
                f"gralora_k={self.blocks} does not divide the sizes of {shown(odd[0].name)}: "
                f"{odd[0].in_features} inputs and {odd[0].out_features} outputs"
            )
        return KindLayout({m.name: self._plan(m) for m in targets})

    def _plan(self, module: TargetModule) -> ModulePlan:
        prefix, k, r = f"{PREFIX}{module.name}", self.blocks, self.rank
        slots = {
            "a": Slot(f"{prefix}.gralora_A", (k, module.in_features // k, r)),
            "b": Slot(f"{prefix}.gralora_B", (k, r, module.out_features // k)),
        }
        if self.whole_rank:
            slots["whole_a"] = Slot(
                f"{prefix}.gralora_A_general.weight", (self.whole_rank, module.in_features)
            )
            slots["whole_b"] = Slot(
                f"{prefix}.gralora_B_general.weight", (module.out_features, self.whole_rank)
            )
        return ModulePlan(slots, partial(self._update, module), r + self.whole_rank)

    def _update(self, module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        rank, stated = self.blocks * self.rank + self.whole_rank, self.rank + self.whole_rank
        if rank < full_rank(module):
            return LowRank(rank, stated, partial(self._factors, tensors))
        return Dense(module, partial(self._change, tensors), stated)

    def _factors(self, tensors: Mapping[str, torch.Tensor]) -> Factors:
        k, part = self.blocks, self.rank // self.blocks
        stored_a = tensors["a"].float()  # [i, in / k, (o, s)]
        stored_b = tensors["b"].float()  # [o, (i, s), out / k]
        a = torch.zeros(k, k, part, k, stored_a.shape[1])  # rank pages (o, i, s), inputs (i, ..)
        b = torch.zeros(k, stored_b.shape[2], k, k, part)  # outputs (o, ..), rank pages (o, i, s)
        for block in range(k):
            a[:, block, :, block] = stored_a[block].T.view(k, part, -1)
            b[block, :, block] = stored_b[block].T.view(-1, k, part)
        a, b = a.view(k * self.rank, -1), b.view(-1, k * self.rank)
        if self.whole_rank:
            a = torch.cat([a, tensors["whole_a"].float()])
            b = torch.cat([b, tensors["whole_b"].float()], dim=1)
        return a, b * self._scaling

    def _change(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        k, part = self.blocks, self.rank // self.blocks
        stored_a = tensors["a"].float().unflatten(2, (k, part))  # [i, in / k, o, s]
        stored_b = tensors["b"].float().unflatten(1, (k, part))  # [o, i, s, out / k]
        change = torch.einsum("iqos, oisp -> opiq", stored_a, stored_b).flatten(2).flatten(0, 1)
        if self.whole_rank:
            change = change + tensors["whole_b"].float() @ tensors["whole_a"].float()
        return change * self._scaling

    @property
    def _scaling(self) -> float:
        return self.alpha / (self.rank + self.whole_rank)


def _parse(reader: ConfigReader) -> GraLora:
    return GraLora(
        rank=reader.rank("r", reader.value("r", 32)),
        whole_rank=reader.count("hybrid_r", 0, least=0),
        blocks=reader.count("gralora_k", 2),
        alpha=reader.alpha("alpha", reader.value("alpha", 64)),
    )


GRALORA = WeightKind(
    "GRALORA",
    options=(
        *EVERY_KIND,
        RANK,
        Option("hybrid_r", Treatment.SERVED, "with r it counts for --max-lora-rank"),
        Option("gralora_k", Treatment.SERVED, "it divides r and the sizes of every target module"),
        Option("alpha", Treatment.SERVED, "any positive number; the scaling is alpha / (r + hybrid_r)"),
        SAME_ON_CONV1D,
        *training_only("gralora_dropout", "init_weights"),
        BIAS,
    ),
    parse=_parse,
    strings_ignore_layers=True,
    endings=("gralora_A", "gralora_B", "gralora_A_general.weight", "gralora_B_general.weight"),
    form="s B A for each of k² blocks",
    rank="k r + hybrid_r, or ΔW as it is where that takes less",
    cost="k times that of LoRA of its rank",
)
