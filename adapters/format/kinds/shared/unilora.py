"""Uni-LoRA: every element of all A and B is one of a few numbers (https://arxiv.org/abs/2506.00799).

Which one is drawn at random, so that each is used about equally often; it is divided by the square root of
how often. Without saved indices they are drawn anew, for all target modules at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise

import numpy as np
import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import BIAS, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.rows import EVERY_KIND, RANK, SAME_ON_CONV1D, training_only
from manylora.adapters.format.kinds.updates import Factors, LowRank
from manylora.adapters.format.update import KindLayout, ModulePlan, NoUpdate, Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX

MAX_NUMBERS = 1 << 31
MAX_DRAWN = 1 << 28  # indices that are not saved


@dataclass(frozen=True, slots=True)
class UniLora:
    """What a config of Uni-LoRA says."""

    rank: int
    numbers: int
    seed: int | None  # of the indices; None where the file holds them

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        numbers = {"numbers": Slot("base_model.unilora_theta_d", (self.numbers,))}
        if self.seed is None:
            saved = {m.name: ModulePlan(self._slots(m), self._saved, self.rank) for m in targets}
            return KindLayout(saved, numbers)
        sizes = [self.rank * size for m in targets for size in (m.in_features, m.out_features)]
        if sum(sizes) > MAX_DRAWN:
            faults.add(
                f"r={self.rank} needs {sum(sizes):,} indices; drawn anew they may be {MAX_DRAWN:,}: save "
                "them in the file (save_indices)"
            )
        drawn = _Drawn(self.numbers, self.seed, sizes)
        builds = [partial(self._redrawn, drawn, index) for index in range(len(targets))]
        plans = {m.name: ModulePlan({}, build, self.rank) for m, build in zip(targets, builds, strict=True)}
        return KindLayout(plans, numbers)

    def _slots(self, module: TargetModule) -> dict[str, Slot]:
        prefix = f"{PREFIX}{module.name}.unilora"
        a, b = (self.rank, module.in_features), (module.out_features, self.rank)
        return {
            "a": Slot(f"{prefix}_indices_A", a, integers=True),
            "b": Slot(f"{prefix}_indices_B", b, integers=True),
            "a_scale": Slot(f"{prefix}_scales_A", a),
            "b_scale": Slot(f"{prefix}_scales_B", b),
        }

    def _saved(self, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        return LowRank(self.rank, self.rank, partial(self._saved_factors, tensors))

    def _saved_factors(self, tensors: Mapping[str, torch.Tensor]) -> Factors:
        numbers = tensors["numbers"].float()
        indices = [tensors[part].long() for part in ("a", "b")]
        if any(bool((index < 0).any()) or bool((index >= self.numbers).any()) for index in indices):
            raise NoUpdate("unilora_indices name numbers that unilora_theta_d does not have")
        a, b = (numbers[index] for index in indices)
        return a * tensors["a_scale"].float(), b * tensors["b_scale"].float()

    def _redrawn(self, drawn: _Drawn, index: int, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        return LowRank(self.rank, self.rank, partial(self._drawn_factors, drawn, index, tensors["numbers"]))

    def _drawn_factors(self, drawn: _Drawn, index: int, numbers: torch.Tensor) -> Factors:
        scaled = numbers.float() * drawn.scale
        a, b = (scaled[drawn.part(2 * index + factor)] for factor in (0, 1))
        return a.view(self.rank, -1), b.view(-1, self.rank)


class _Drawn:
    """The indices of all modules, drawn when the first of them is asked for: the very draws of PEFT."""

    def __init__(self, numbers: int, seed: int, sizes: Sequence[int]) -> None:
        self._numbers = numbers
        self._seed = seed
        self._runs = [*pairwise(accumulate(sizes, initial=0))]

    def part(self, index: int) -> torch.Tensor:
        """The indices of that factor, A and B of each module in turn, flat."""
        start, stop = self._runs[index]
        return self._all[start:stop]

    @cached_property
    def scale(self) -> torch.Tensor:
        """1 / √count of every number, 0 where it is not used: [numbers] float32."""
        counts = torch.bincount(self._all, minlength=self._numbers).float()
        return torch.where(counts > 0, counts.rsqrt(), 0.0)

    @cached_property
    def _all(self) -> torch.Tensor:
        total = self._runs[-1][1]
        generator = np.random.default_rng(self._seed)
        drawn = np.repeat(np.arange(self._numbers), total // self._numbers)
        if total % self._numbers:
            rest = generator.choice(self._numbers, size=total % self._numbers, replace=False)
            drawn = np.concatenate([drawn, rest])
        generator.shuffle(drawn)
        return torch.from_numpy(drawn)


def _parse(reader: ConfigReader) -> UniLora:
    return UniLora(
        rank=reader.rank("r", reader.value("r", 4)),
        numbers=reader.count("theta_d_length", 256, most=MAX_NUMBERS),
        seed=reader.seed("proj_seed", 42, saved="save_indices", saved_by_default=False),
    )


UNILORA = WeightKind(
    "UNILORA",
    options=(
        *EVERY_KIND,
        RANK,
        Option("theta_d_length", Treatment.SERVED, "numbers that are trained"),
        Option("save_indices", Treatment.SERVED, "without saved indices they are drawn anew, as PEFT does"),
        Option("proj_seed", Treatment.SERVED, "the seed of indices that are not saved"),
        SAME_ON_CONV1D,
        *training_only("unilora_dropout", "init_theta_d_bound", "init_weights"),
        BIAS,
    ),
    parse=_parse,
    endings=("unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B"),
    form="B A, each element one of a few numbers",
    rank="r",
    cost="as LoRA of its rank",
    shared=("base_model.unilora_theta_d",),
)
