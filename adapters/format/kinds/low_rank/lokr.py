"""LoKr: a Kronecker product, of which either factor may be a product of low rank (LyCORIS, KronA).

ΔW = s W1 ⊗ W2 with W1 [a, c], W2 [b, d], a b outputs and c d inputs. With W1 = B1 A1 and W2 = B2 A2 it is
(B1 ⊗ B2)(A1 ⊗ A2), of rank r1 r2. A factor that is whole is a product with the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import EXCLUDE, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.ranks import PerModule, read_alphas, read_ranks
from manylora.adapters.format.kinds.rows import (
    ALPHA,
    ALPHA_PATTERN,
    EVERY_KIND,
    RANK,
    RANK_PATTERN,
    training_only,
)
from manylora.adapters.format.kinds.updates import Dense, Factors, LowRank, full_rank, whole
from manylora.adapters.format.update import KindLayout, ModulePlan, Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX

MAX_FACTOR = 1 << 30


@dataclass(frozen=True, slots=True)
class LoKr:
    """What a config of LoKr says."""

    ranks: PerModule[int]
    alphas: PerModule[float]
    decompose_both: bool
    factor: int  # -1: near the square root

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        ranks, alphas = self.ranks.of(targets, faults), self.alphas.of(targets, faults)
        return KindLayout({m.name: self._plan(m, ranks[m.name], alphas[m.name]) for m in targets})

    def _plan(self, module: TargetModule, rank: int, alpha: float) -> ModulePlan:
        c, d = split(module.in_features, self.factor)
        a, b = split(module.out_features, self.factor)
        first_whole = not (self.decompose_both and rank < max(a, c) / 2)
        slots = {
            **_slots(module, "w1", (a, c), None if first_whole else rank),
            **_slots(module, "w2", (b, d), rank if rank < max(b, d) / 2 else None),
        }
        inner = _inner(slots, "w1") * _inner(slots, "w2")
        return ModulePlan(slots, partial(_update, module, inner, rank, alpha / rank), rank)


def split(dimension: int, factor: int) -> tuple[int, int]:
    """Two numbers, the smaller first, with that product, as PEFT chooses them (``lokr/layer.py``).

    ``factor`` and the rest where it divides the dimension. Else the divisors nearest to each other, of which
    the smaller is at most ``factor``; -1 sets no limit.
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    limit = dimension if factor == -1 else factor
    divisors = [n for n in range(1, isqrt(dimension) + 1) if dimension % n == 0]
    small = max([n for n in divisors if n <= limit], default=1)
    return small, dimension // small


def _slots(module: TargetModule, part: str, shape: tuple[int, int], rank: int | None) -> dict[str, Slot]:
    name = f"{PREFIX}{module.name}.lokr_{part}"
    if rank is None:
        return {part: Slot(name, shape)}
    return {
        f"{part}_a": Slot(f"{name}_a", (shape[0], rank)),
        f"{part}_b": Slot(f"{name}_b", (rank, shape[1])),
    }


def _inner(slots: Mapping[str, Slot], part: str) -> int:
    """The rank of the factor's own factors."""
    return min(slots[part].shape) if part in slots else slots[f"{part}_b"].shape[0]


def _update(
    module: TargetModule, inner: int, rank: int, scaling: float, tensors: Mapping[str, torch.Tensor]
) -> WeightUpdate:
    if inner < full_rank(module):
        return LowRank(inner, rank, partial(_factors, tensors, scaling))
    return Dense(module, partial(_change, tensors, scaling), rank)


def _factors(tensors: Mapping[str, torch.Tensor], scaling: float) -> Factors:
    (a1, b1), (a2, b2) = _factored(tensors, "w1"), _factored(tensors, "w2")
    return torch.kron(a1, a2), torch.kron(b1, b2) * scaling


def _factored(tensors: Mapping[str, torch.Tensor], part: str) -> Factors:
    if part in tensors:
        return whole(tensors[part].float())
    return tensors[f"{part}_b"].float(), tensors[f"{part}_a"].float()


def _change(tensors: Mapping[str, torch.Tensor], scaling: float) -> torch.Tensor:
    (a1, b1), (a2, b2) = _factored(tensors, "w1"), _factored(tensors, "w2")
    return torch.kron(b1 @ a1, b2 @ a2) * scaling


def _parse(reader: ConfigReader) -> LoKr:
    return LoKr(
        ranks=read_ranks(reader, 8),
        alphas=read_alphas(reader, 8),
        decompose_both=reader.flag("decompose_both"),
        factor=reader.count("decompose_factor", -1, least=-1, most=MAX_FACTOR),
    )


LOKR = WeightKind(
    "LOKR",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        RANK,
        ALPHA,
        RANK_PATTERN,
        ALPHA_PATTERN,
        Option("decompose_both", Treatment.SERVED, "whether the left factor may be a product as well"),
        Option("decompose_factor", Treatment.SERVED, "the sizes of the left factor, chosen as PEFT does"),
        *training_only(
            "rank_dropout", "rank_dropout_scale", "module_dropout", "use_effective_conv2d", "init_weights"
        ),
    ),
    parse=_parse,
    strings_ignore_layers=True,
    endings=("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    form="s W1 ⊗ W2, each whole or a product",
    rank="the product of two numbers: of each factor r if it is a product, else its smaller side",
    cost="as LoRA of that rank; that of the whole weight where both are whole",
)
