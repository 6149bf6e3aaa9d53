"""LoHa: the element-wise product of two low-rank products (FedPara, https://arxiv.org/abs/2108.06098).

ΔW = s (W1a W1b) ⊙ (W2a W2b), both of rank r. Their product has rank r² at most, and factors of that rank:
the products of every column of W1a with every column of W2a, and of the rows of W1b and W2b.
"""

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
from manylora.adapters.format.kinds.ranks import PerModule, read_alphas, read_ranks
from manylora.adapters.format.kinds.rows import (
    ALPHA,
    ALPHA_PATTERN,
    EVERY_KIND,
    RANK,
    RANK_PATTERN,
    training_only,
)
from manylora.adapters.format.kinds.updates import Dense, Factors, LowRank, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX


@dataclass(frozen=True, slots=True)
class LoHa:
    """What a config of LoHa says."""

    ranks: PerModule[int]
    alphas: PerModule[float]

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        ranks, alphas = self.ranks.of(targets, faults), self.alphas.of(targets, faults)
        return KindLayout({m.name: _plan(m, ranks[m.name], alphas[m.name]) for m in targets})


def _plan(module: TargetModule, rank: int, alpha: float) -> ModulePlan:
    prefix, width_in, width_out = f"{PREFIX}{module.name}", module.in_features, module.out_features
    slots = {
        "w1_a": Slot(f"{prefix}.hada_w1_a", (width_out, rank)),
        "w1_b": Slot(f"{prefix}.hada_w1_b", (rank, width_in)),
        "w2_a": Slot(f"{prefix}.hada_w2_a", (width_out, rank)),
        "w2_b": Slot(f"{prefix}.hada_w2_b", (rank, width_in)),
    }
    return ModulePlan(slots, partial(_update, module, rank, alpha / rank), rank)


def _update(
    module: TargetModule, rank: int, scaling: float, tensors: Mapping[str, torch.Tensor]
) -> WeightUpdate:
    if rank * rank < full_rank(module):
        return LowRank(rank * rank, rank, partial(_factors, tensors, scaling))
    return Dense(module, partial(_change, tensors, scaling), rank)


def _factors(tensors: Mapping[str, torch.Tensor], scaling: float) -> Factors:
    w1_a, w1_b, w2_a, w2_b = (tensors[part].float() for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
    a = (w1_b[:, None] * w2_b).flatten(0, 1)
    b = (w1_a[:, :, None] * w2_a[:, None]).flatten(1, 2) * scaling
    return a, b


def _change(tensors: Mapping[str, torch.Tensor], scaling: float) -> torch.Tensor:
    first = tensors["w1_a"].float() @ tensors["w1_b"].float()
    return first * (tensors["w2_a"].float() @ tensors["w2_b"].float()) * scaling


def _parse(reader: ConfigReader) -> LoHa:
    return LoHa(read_ranks(reader, 8), read_alphas(reader, 8))


LOHA = WeightKind(
    "LOHA",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        RANK,
        ALPHA,
        RANK_PATTERN,
        ALPHA_PATTERN,
        *training_only("rank_dropout", "module_dropout", "use_effective_conv2d", "init_weights"),
    ),
    parse=_parse,
    strings_ignore_layers=True,
    endings=("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    form="s (W1a W1b) ⊙ (W2a W2b)",
    rank="r², or ΔW as it is where that takes less",
    cost="r times that of LoRA of its rank",
)
