"""Poly: a task mixes the A's and B's of several skills (https://arxiv.org/abs/2202.13914).

Inputs and outputs are cut into equal splits (https://arxiv.org/abs/2211.03831). In each the skills' A's, and
the skills' B's, are averaged with weights that belong to the task: the sigmoids of its logits, divided by
their sum. What comes out is one A and one B: LoRA. PEFT is told the task with every call; a request has no
place for that, so there may be but one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import EXCLUDE, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.plans import refuse, slot
from manylora.adapters.format.kinds.rows import EVERY_KIND, RANK, training_only
from manylora.adapters.format.kinds.updates import Dense, Factors, LowRank, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, WeightUpdate

_A, _B, _LOGITS = "poly_lora_A", "poly_lora_B", "poly_router.module_logits"
_LEAST_SUM = 1e-12  # that PEFT adds before it divides


@dataclass(frozen=True, slots=True)
class Poly:
    """What a config of Poly says."""

    rank: int
    skills: int
    splits: int
    tasks: int

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        if self.tasks != 1:
            faults.add(
                f"n_tasks={self.tasks} is not served: a request can't name its task, so there may be but one"
            )
        uneven = [m for m in targets if m.in_features % self.splits or m.out_features % self.splits]
        refuse(f"n_splits={self.splits} does not divide inputs and outputs", uneven, faults)
        return KindLayout({m.name: self._plan(m) for m in targets})

    def _plan(self, module: TargetModule) -> ModulePlan:
        cut = self.splits, self.skills
        slots = {
            "a": slot(module, _A, *cut, module.in_features // self.splits, self.rank),
            "b": slot(module, _B, *cut, self.rank, module.out_features // self.splits),
            "logits": slot(module, _LOGITS, self.tasks, self.splits * self.skills),
        }
        return ModulePlan(slots, partial(self._update, module), self.rank)

    def _update(self, module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        make = partial(_factors, tensors["a"], tensors["b"], tensors["logits"])
        if self.rank < full_rank(module):
            return LowRank(self.rank, self.rank, make)
        return Dense(module, partial(_change, make), self.rank)


def _factors(a: torch.Tensor, b: torch.Tensor, logits: torch.Tensor) -> Factors:
    """A [r, in] and B [out, r], 1 / r in it, of the first task."""
    splits, skills, _, rank = a.shape
    chosen = logits[0].float().sigmoid().view(splits, skills)
    shares = (chosen / (chosen.sum(1, keepdim=True) + _LEAST_SUM))[:, :, None, None]
    mixed_a, mixed_b = (shares * a.float()).sum(1), (shares * b.float()).sum(1)  # [splits, ...]
    return mixed_a.flatten(0, 1).T.contiguous(), mixed_b.transpose(1, 2).flatten(0, 1) / rank


def _change(make: partial[Factors]) -> torch.Tensor:
    a, b = make()
    return b @ a


def _parse(reader: ConfigReader) -> Poly:
    return Poly(
        reader.rank("r", reader.value("r", 8)),
        reader.count("n_skills", 4),
        reader.count("n_splits", 1),
        reader.count("n_tasks", 1),
    )


POLY = WeightKind(
    "POLY",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        RANK,
        Option("n_tasks", Treatment.SERVED, "1: with more a request would have to name its task"),
        Option("n_skills", Treatment.SERVED, "their A's and B's are averaged when the adapter is published"),
        Option("n_splits", Treatment.SERVED, "parts of inputs and outputs, each with averages of its own"),
        Option("poly_type", Treatment.NO_EFFECT, 'PEFT has no other than "poly"'),
        *training_only("init_weights"),
    ),
    parse=_parse,
    endings=(_A, _B, _LOGITS),
    form="(Σ wᵢ Bᵢ) (Σ wᵢ Aᵢ) / r over skills i, of one task",
    rank="r",
    cost="as LoRA of its rank",
)
