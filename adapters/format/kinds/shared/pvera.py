"""PVeRA: VeRA whose inner values have a mean and a variance (https://arxiv.org/abs/2512.07703).

The first half of the rows of A and of λ_d gives the mean, which is what PEFT computes with unless it samples:
ΔW = λ_b ⊙ B (λ_d ⊙ A) as in VeRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

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
from manylora.adapters.format.kinds.updates import Factors, LowRank
from manylora.adapters.format.update import KindLayout, ModulePlan, Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX
from manylora.adapters.format.weights.read_deltas import kaiming


@dataclass(frozen=True, slots=True)
class PVera:
    """What a config of PVeRA says."""

    rank: int
    seed: int | None  # of the projections; None where the file holds them

    def lay_out(self, targets: Sequence[TargetModule], _faults: Faults, /) -> KindLayout:
        a = (2 * self.rank, max((m.in_features for m in targets), default=1))
        b = (max((m.out_features for m in targets), default=1), self.rank)
        if self.seed is None:
            shared = {"a": Slot("base_model.pvera_A", a), "b": Slot("base_model.pvera_B", b)}
            return KindLayout({m.name: self._plan(m, None) for m in targets}, shared)
        drawn = _Drawn(self.seed, a, b)
        return KindLayout({m.name: self._plan(m, drawn) for m in targets})

    def _plan(self, module: TargetModule, drawn: _Drawn | None) -> ModulePlan:
        prefix = f"{PREFIX}{module.name}.pvera_lambda"
        slots = {
            "outer": Slot(f"{prefix}_b", (module.out_features,)),
            "inner": Slot(f"{prefix}_d", (2 * self.rank,)),
        }
        return ModulePlan(slots, partial(self._update, module, drawn), self.rank)

    def _update(
        self, module: TargetModule, drawn: _Drawn | None, tensors: Mapping[str, torch.Tensor]
    ) -> WeightUpdate:
        return LowRank(self.rank, self.rank, partial(self._factors, module, drawn, tensors))

    def _factors(
        self, module: TargetModule, drawn: _Drawn | None, tensors: Mapping[str, torch.Tensor]
    ) -> Factors:
        a, b = (tensors["a"].float(), tensors["b"].float()) if drawn is None else drawn.projections
        inner = tensors["inner"].float()[: self.rank]
        outer = tensors["outer"].float()
        return a[: self.rank, : module.in_features], b[: module.out_features] * inner * outer[:, None]


class _Drawn:
    """Projections that are not saved, drawn once, when the first module asks for them."""

    def __init__(self, seed: int, *shapes: tuple[int, int]) -> None:
        self._seed = seed
        self._shapes = shapes

    @cached_property
    def projections(self) -> Factors:
        """A [2r, widest in] and B [widest out, r]: the very draws of PEFT."""
        generator = torch.Generator().manual_seed(self._seed)
        a, b = (kaiming(shape, generator) for shape in self._shapes)
        return a, b


def _parse(reader: ConfigReader) -> PVera:
    return PVera(
        rank=reader.rank("r", reader.value("r", 256)),
        seed=reader.seed("projection_prng_key", 0, saved="save_projection"),
    )


PVERA = WeightKind(
    "PVERA",
    options=(
        *EVERY_KIND,
        RANK,
        SAVE_PROJECTION,
        Option("projection_prng_key", Treatment.SERVED, "the seed of projections that are not saved"),
        Option(
            "sample_at_inference",
            Treatment.REFUSED,
            "the same request would have other answers each time",
            "set it to false: the mean is served",
        ),
        Option("generator_seed", Treatment.NO_EFFECT, "read only when it samples"),
        SAME_ON_CONV1D,
        *training_only("pvera_dropout", "d_initial", "init_weights"),
        BIAS,
    ),
    parse=_parse,
    strings_ignore_layers=True,
    endings=("pvera_lambda_b", "pvera_lambda_d"),
    form="λ_b ⊙ B (λ_d ⊙ A), the mean of what it learned",
    rank="r, usually 256",
    cost="as LoRA of its rank",
    shared=("base_model.pvera_A", "base_model.pvera_B"),
)
