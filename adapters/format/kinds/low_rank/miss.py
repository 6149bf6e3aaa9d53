"""MiSS, once called Bone: shards of the input share one matrix (https://arxiv.org/abs/2409.15371).

ΔW = Dᵀ S, where D is [r, out] and S [r, in] adds up the inputs r apart: S[i, j] is 1 where j mod r is i.
"mini" repeats a smaller D along the outputs. "bat" makes ΔW depend on W: with both cut into blocks [r, r],
the block (o, i) of ΔW is W[o, i] D[o] + D[o].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import BIAS, EXCLUDE, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults, shown
from manylora.adapters.format.kinds.rows import EVERY_KIND, RANK, training_only
from manylora.adapters.format.kinds.updates import Dense, DenseOfWeight, Factors, LowRank, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, Slot, WeightUpdate
from manylora.adapters.format.weights.expected_tensors import PREFIX

MAX_MINI = 1 << 30


class Form(StrEnum):
    """How D becomes the change."""

    PLAIN = "plain"
    MINI = "mini"
    BAT = "bat"


@dataclass(frozen=True, slots=True)
class Miss:
    """What a config of MiSS or Bone says."""

    rank: int
    form: Form
    mini: int  # columns of D, for "mini"
    tensor: str  # its name

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        for module in targets:
            fault = self._misfit(module)
            if fault:
                faults.add(f"{fault} of {shown(module.name)}")
                break
        return KindLayout({m.name: self._plan(m) for m in targets})

    def _misfit(self, module: TargetModule) -> str:
        width_in, width_out, rank = module.in_features, module.out_features, self.rank
        if rank > width_in:
            return f"r={rank} is more than the {width_in} inputs"
        if self.form is Form.BAT and (width_in % rank or width_out % rank):
            return f"init_weights='bat' needs an r that divides the {width_in} inputs and {width_out} outputs"
        if self.form is Form.MINI and width_out % self.mini:
            return f"mini_r={self.mini} does not divide the {width_out} outputs"
        return ""

    def _plan(self, module: TargetModule) -> ModulePlan:
        shape = {
            Form.PLAIN: (self.rank, module.out_features),
            Form.MINI: (self.rank, self.mini),
            Form.BAT: (module.out_features // self.rank, self.rank, self.rank),
        }[self.form]
        slot = Slot(f"{PREFIX}{module.name}.{self.tensor}", shape)
        return ModulePlan({"d": slot}, partial(self._update, module), self.rank)

    def _update(self, module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        d = tensors["d"]
        if self.form is Form.BAT:
            return DenseOfWeight(module, partial(_bat, d), self.rank)
        if self.rank < full_rank(module):
            return LowRank(self.rank, self.rank, partial(_factors, module, d))
        return Dense(module, partial(_change, module, d), self.rank)


def _factors(module: TargetModule, d: torch.Tensor) -> Factors:
    rank = d.shape[0]
    a = torch.eye(rank).repeat(1, -(-module.in_features // rank))[:, : module.in_features]
    return a, _columns(module, d).T


def _change(module: TargetModule, d: torch.Tensor) -> torch.Tensor:
    return _columns(module, d).T[:, torch.arange(module.in_features) % d.shape[0]]


def _columns(module: TargetModule, d: torch.Tensor) -> torch.Tensor:
    """D [r, out], repeated where it is smaller."""
    return d.float().repeat(1, module.out_features // d.shape[1])


def _bat(d: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    blocks, rank, _ = d.shape
    tiles = weight.view(blocks, rank, -1, rank).permute(0, 2, 1, 3)  # [out / r, in / r, r, r]
    own = d.float()[:, None]
    return (tiles @ own + own).permute(0, 2, 1, 3).reshape(weight.shape)


def _parser(tensor: str, forms: Sequence[Form]) -> Callable[[ConfigReader], Miss]:
    def parse(reader: ConfigReader) -> Miss:
        form = reader.choice_or_flag("init_weights", forms)
        rank = reader.rank("r", reader.value("r", 64))
        mini = reader.count("mini_r", 1, most=MAX_MINI)
        return Miss(rank, Form.PLAIN if form is None else Form(form), mini, tensor)

    return parse


_MINI = Option("mini_r", Treatment.SERVED, "read with init_weights='mini' only: columns of the matrix")


def _kind(peft_type: str, tensor: str, forms: Sequence[Form], *own: Option) -> WeightKind:
    return WeightKind(
        peft_type,
        options=(
            *EVERY_KIND,
            EXCLUDE,
            RANK,
            *own,
            Option(
                "init_weights", Treatment.SERVED, "which form it has: true, false, 'bat', or 'mini' of MiSS"
            ),
            BIAS,
        ),
        parse=_parser(tensor, forms),
        endings=(tensor,),
        form="Dᵀ S, S of zeros and ones; with 'bat' block by block W D + D",
        rank="r; with 'bat' ΔW as it is",
        cost="as LoRA of its rank; with 'bat' that of the whole weight",
    )


MISS = _kind("MISS", "miss_block", (Form.BAT, Form.MINI), _MINI, *training_only("miss_dropout"))
BONE = _kind("BONE", "bone_block", (Form.BAT,), *training_only("bone_dropout"))
