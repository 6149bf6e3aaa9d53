"""DEFT: a subspace of the outputs is taken out of W and filled anew (https://arxiv.org/abs/2505.19812).

W' = W - Q Pᵀ W + s Q R, with Q = P made orthonormal in both places, or with relu(P)ᵀ in place of Pᵀ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import BIAS, EXCLUDE, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.plans import slot
from manylora.adapters.format.kinds.rows import EVERY_KIND, RANK, no_effect, training_only
from manylora.adapters.format.kinds.updates import DenseOfWeight, Factors, LowRankOfWeight, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, WeightUpdate


@dataclass(frozen=True, slots=True)
class Deft:
    """What a config of DEFT says."""

    r: int  # a module has at most as many as it has outputs
    alpha: float | None
    orthonormal: bool  # decomposition_method "qr"; else "relu"
    empty: bool  # whether the subspace is left empty

    def lay_out(self, targets: Sequence[TargetModule], _faults: Faults, /) -> KindLayout:
        return KindLayout({module.name: self._plan(module) for module in targets})

    def _plan(self, module: TargetModule) -> ModulePlan:
        rank = min(self.r, module.out_features)
        slots = {"p": slot(module, "deft_P", module.out_features, rank)}
        if not self.empty:
            slots["r"] = slot(module, "deft_R", rank, module.in_features)
        return ModulePlan(slots, partial(self._update, module, rank), rank)

    def _update(self, module: TargetModule, rank: int, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        make = partial(self._factors, tensors["p"].float(), tensors.get("r"))
        if rank < full_rank(module):
            return LowRankOfWeight(rank, rank, make)
        return DenseOfWeight(module, lambda weight: _product(make(weight)), rank)

    def _factors(self, p: torch.Tensor, filled: torch.Tensor | None, weight: torch.Tensor) -> Factors:
        q = torch.linalg.qr(p).Q if self.orthonormal else p
        taken = (q if self.orthonormal else p.relu()).T @ weight
        if filled is None:
            return -taken, q
        scaling = self.alpha / p.shape[1] if self.alpha else 1.0
        return filled.float() * scaling - taken, q


def _product(factors: Factors) -> torch.Tensor:
    a, b = factors
    return b @ a


def _parse(reader: ConfigReader) -> Deft:
    return Deft(
        reader.rank("r", reader.value("r", 8)),
        None if reader.value("alpha", None) is None else reader.number("alpha", 0.0),
        reader.choice("decomposition_method", ("relu", "qr"), "relu") == "qr",
        reader.flag("para"),
    )


_SERVED = Treatment.SERVED

DEFT = WeightKind(
    "DEFT",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        RANK,
        Option("alpha", _SERVED, "the scaling is alpha / r; 1 without it"),
        Option("decomposition_method", _SERVED, "relu or qr"),
        Option("para", _SERVED, "the subspace is taken out and not filled"),
        BIAS,
        no_effect("fan_in_fan_out", "P is [out, r] and R is [r, in] on nn.Linear and Conv1D alike"),
        *training_only("deft_dropout", "init_weights", "init_scale"),
    ),
    parse=_parse,
    endings=("deft_P", "deft_R"),
    form="s Q R - Q Pᵀ W",
    rank="r",
    cost="as LoRA of its rank",
)
