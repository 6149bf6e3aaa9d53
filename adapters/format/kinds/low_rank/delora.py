"""DeLoRA: every rank has unit size, and one number the strength of all (https://arxiv.org/abs/2503.18225).

ΔW = (λ / r) Σ_i b_i a_iᵀ / (‖b_i‖ ‖a_i‖), with its columns scaled by the norms of the columns of W when the
training began, which are in the file.
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
from manylora.adapters.format.kinds.ranks import PerModule, read_ranks
from manylora.adapters.format.kinds.rows import EVERY_KIND, RANK, RANK_PATTERN, training_only
from manylora.adapters.format.kinds.updates import Factors, LowRank
from manylora.adapters.format.update import KindLayout, ModulePlan, Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX

_LEAST_NORM = 1e-4  # PEFT's


@dataclass(frozen=True, slots=True)
class DeLora:
    """What a config of DeLoRA says."""

    ranks: PerModule[int]

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        ranks = self.ranks.of(targets, faults)
        return KindLayout({m.name: _plan(m, ranks[m.name]) for m in targets})


def _plan(module: TargetModule, rank: int) -> ModulePlan:
    prefix = f"{PREFIX}{module.name}"
    slots = {
        "a": Slot(f"{prefix}.delora_A", (rank, module.in_features)),
        "b": Slot(f"{prefix}.delora_B", (module.out_features, rank)),
        "strength": Slot(f"{prefix}.delora_lambda", (1,)),
        "columns": Slot(f"{prefix}.delora_w_norm", (module.in_features,)),
    }
    return ModulePlan(slots, partial(_update, rank), rank)


def _update(rank: int, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
    return LowRank(rank, rank, partial(_factors, rank, tensors))


def _factors(rank: int, tensors: Mapping[str, torch.Tensor]) -> Factors:
    a, b = tensors["a"].float(), tensors["b"].float()
    sizes = a.norm(dim=1).clamp(min=_LEAST_NORM) * b.norm(dim=0).clamp(min=_LEAST_NORM)
    return a * tensors["columns"].float(), b * (tensors["strength"].float() / rank / sizes)


def _parse(reader: ConfigReader) -> DeLora:
    return DeLora(read_ranks(reader, 8))


DELORA = WeightKind(
    "DELORA",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        RANK,
        RANK_PATTERN,
        *(
            Option(key, Treatment.NO_EFFECT, "where training began; the file holds what it came to")
            for key in ("delora_lambda", "lambda_pattern")
        ),
        *training_only("module_dropout", "init_weights"),
        BIAS,
    ),
    parse=_parse,
    endings=("delora_A", "delora_B", "delora_lambda", "delora_w_norm"),
    form="λ/r B A with rows and columns of unit size, times the norms of the columns of W",
    rank="r",
    cost="as LoRA of its rank",
)
