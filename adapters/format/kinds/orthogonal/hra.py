"""HRA: the weight times a chain of Householder reflections (https://arxiv.org/abs/2405.17484).

W' = W H_1 … H_r with H_i = 1 − 2 u_i u_iᵀ, the u_i being the columns of U [in, r], normalized. The product of
the first i is 1 − 2 Σ_{j ≤ i} v_j u_jᵀ with v_j = H_1 … H_{j−1} u_j, so ΔW = −2 (W V) Uᵀ has rank r. With
Gram-Schmidt the u_i are made orthogonal first, and V = U.
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
from manylora.adapters.format.faults import Faults, shown
from manylora.adapters.format.kinds.rows import EVERY_KIND, RANK, training_only
from manylora.adapters.format.kinds.updates import DenseOfWeight, Factors, LowRankOfWeight, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, NoUpdate, Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX

_DEPENDENT = 1e-6  # of a column: what rounding leaves of one that others make up
_NOTHING = 1e-10  # of the energies of the factors: what rounding leaves of a change that cancels out


@dataclass(frozen=True, slots=True)
class Hra:
    """What a config of HRA says."""

    rank: int
    gram_schmidt: bool

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        narrow = [m for m in targets if m.in_features < self.rank]
        if self.gram_schmidt and narrow:
            faults.add(
                f"apply_GS needs an r up to the {narrow[0].in_features} inputs of {shown(narrow[0].name)}"
            )
        return KindLayout({m.name: self._plan(m) for m in targets})

    def _plan(self, module: TargetModule) -> ModulePlan:
        slot = Slot(f"{PREFIX}{module.name}.hra_u", (module.in_features, self.rank))
        return ModulePlan({"u": slot}, partial(self._update, module), self.rank)

    def _update(self, module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        if self.rank < full_rank(module):
            return LowRankOfWeight(self.rank, self.rank, partial(self._low_rank, tensors["u"]))
        return DenseOfWeight(module, partial(self._dense, tensors["u"]), self.rank)

    def _low_rank(self, u: torch.Tensor, weight: torch.Tensor) -> Factors:
        a, b = self._factors(u, weight)
        energy = ((b.T.double() @ b.double()) * (a.double() @ a.T.double())).sum()
        return a, torch.zeros_like(b) if _cancels(energy, a, b) else b

    def _dense(self, u: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        a, b = self._factors(u, weight)
        change = b @ a
        return torch.zeros_like(change) if _cancels(change.double().square().sum(), a, b) else change

    def _factors(self, u: torch.Tensor, weight: torch.Tensor) -> Factors:
        columns = u.float()
        if not bool(columns.norm(dim=0).all()):
            raise NoUpdate("a column of hra_u is zero")
        if self.gram_schmidt:
            left = right = _orthogonal(columns)
        else:
            right = columns / columns.norm(dim=0)
            left = _reflected(right)
        return right.T.contiguous(), -2 * (weight @ left)


def _reflected(unit: torch.Tensor) -> torch.Tensor:
    """V of the columns of ``unit`` [in, r], each reflected at those before it."""
    result = unit.clone()
    for i in range(1, unit.shape[1]):
        result[:, i] -= 2 * (result[:, :i] @ (unit[:, :i].T @ unit[:, i]))
    return result


def _orthogonal(columns: torch.Tensor) -> torch.Tensor:
    """Modified Gram-Schmidt, whose every column meets the others in the order in which it does in PEFT."""
    result = columns.clone()
    for i in range(columns.shape[1]):
        norm = result[:, i].norm()
        if norm <= _DEPENDENT * columns[:, i].norm():
            raise NoUpdate("the columns of hra_u are linearly dependent")
        result[:, i] /= norm
        later = result[:, i + 1 :]
        later -= result[:, i, None] * (result[:, i] @ later)
    return result


def _cancels(energy: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether nothing is left of B A, as in an adapter that was not trained: its columns come in pairs."""
    return float(energy) <= _NOTHING * float(b.double().square().sum() * a.double().square().sum())


def _parse(reader: ConfigReader) -> Hra:
    return Hra(reader.rank("r", reader.value("r", 8)), reader.flag("apply_GS"))


HRA = WeightKind(
    "HRA",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        RANK,
        Option("apply_GS", Treatment.SERVED, "the vectors are made orthogonal first"),
        *training_only("init_weights"),
        BIAS,
    ),
    parse=_parse,
    endings=("hra_u",),
    form="W H1 … Hr - W, reflections H",
    rank="r",
    cost="as LoRA of its rank; publishing takes a product with each weight",
)
