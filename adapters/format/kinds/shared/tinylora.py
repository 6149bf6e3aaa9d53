"""TinyLoRA: a few numbers steer a small matrix between factors of the weight (https://arxiv.org/abs/2602.04118).

ΔW = B (Σ_i v_i P_i) A, with A and B from the singular value decomposition of W, which the file holds, and P
drawn at random. Modules in groups share v.
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
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.rows import (
    EVERY_KIND,
    RANK,
    SAME_ON_CONV1D,
    SAVE_PROJECTION,
    training_only,
)
from manylora.adapters.format.kinds.updates import Factors, LowRank, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX

MAX_STEERING = 1 << 20  # numbers in v
MAX_DRAWN = 1 << 26  # numbers of one P that is not saved


@dataclass(frozen=True, slots=True)
class TinyLora:
    """What a config of TinyLoRA says."""

    rank: int
    steering: int  # numbers in v
    tying: float  # 0: each module has its own v; 1: all share one
    seed: int | None  # of P; None where the file holds it

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        widest = max((min(self.rank, full_rank(module)) for module in targets), default=0)
        if self.seed is not None and self.steering * widest**2 > MAX_DRAWN:
            faults.add(
                f"u={self.steering} and r={self.rank} need projections of {self.steering * widest**2:,} "
                f"numbers for a module; drawn anew they may have {MAX_DRAWN:,}: save them in the file"
            )
        groups = max(1, round(len(targets) * (1.0 - self.tying)))
        size = max(1, len(targets) // groups)
        used = {min(index // size, groups - 1) for index in range(len(targets))}
        return KindLayout(
            {m.name: self._plan(m, i, min(i // size, groups - 1)) for i, m in enumerate(targets)},
            {f"v{group}": Slot(f"base_model.tinylora_v.{group}", (self.steering,)) for group in sorted(used)},
        )

    def _plan(self, module: TargetModule, index: int, group: int) -> ModulePlan:
        prefix, rank = f"{PREFIX}{module.name}", min(self.rank, full_rank(module))
        slots = {
            "a": Slot(f"{prefix}.tinylora_A", (rank, module.in_features)),
            "b": Slot(f"{prefix}.tinylora_B", (module.out_features, rank)),
        }
        if self.seed is None:
            slots["p"] = Slot(f"{prefix}.tinylora_P", (self.steering, rank, rank))
        return ModulePlan(slots, partial(self._update, rank, index, f"v{group}"), rank)

    def _update(self, rank: int, index: int, group: str, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        return LowRank(rank, rank, partial(self._factors, rank, index, tensors[group], tensors))

    def _factors(
        self, rank: int, index: int, v: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> Factors:
        p = tensors["p"].float() if self.seed is None else self._drawn(rank, index, self.seed)
        between = (v.float() @ p.flatten(1)).view(rank, rank)
        return tensors["a"].float(), tensors["b"].float() @ between

    def _drawn(self, rank: int, index: int, seed: int) -> torch.Tensor:
        """P of the module with that place among the target modules: the very draws of PEFT."""
        generator = torch.Generator().manual_seed(seed + index)
        shape = (self.steering, rank, rank)
        return torch.normal(mean=0.0, std=1.0 / rank**0.5, size=shape, generator=generator)


def _parse(reader: ConfigReader) -> TinyLora:
    return TinyLora(
        rank=reader.rank("r", reader.value("r", 2)),
        steering=reader.count("u", 64, most=MAX_STEERING),
        tying=reader.share("weight_tying", 0.0),
        seed=reader.seed("projection_seed", 42, saved="save_projection"),
    )


TINYLORA = WeightKind(
    "TINYLORA",
    options=(
        *EVERY_KIND,
        RANK,
        Option("u", Treatment.SERVED, "numbers that are trained, for each group of modules"),
        Option("weight_tying", Treatment.SERVED, "which modules share them"),
        SAVE_PROJECTION,
        Option("projection_seed", Treatment.SERVED, "the seed of projections that are not saved"),
        SAME_ON_CONV1D,
        *training_only("tinylora_dropout", "init_v_bound", "init_weights"),
        BIAS,
    ),
    parse=_parse,
    strings_ignore_layers=True,
    endings=("tinylora_A", "tinylora_B", "tinylora_P"),
    form="B (Σ v P) A, A and B from the singular values of W",
    rank="r",
    cost="as LoRA of its rank",
    shared=("base_model.tinylora_v.",),
)
