"""GLoRA: W and b are each scaled and shifted, and W shifts b (https://arxiv.org/abs/2306.07967).

W' = W + W ⊙ A + B and b' = b + b ⊙ D + E + W C; the bias changes only where the base has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import BIAS, COMMON, MODULES_TO_SAVE, TARGETS, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.plans import slot
from manylora.adapters.format.kinds.rows import RANK, training_only
from manylora.adapters.format.kinds.updates import DenseOfWeight
from manylora.adapters.format.update import KindLayout, ModulePlan, Shifted, Slot, WeightUpdate

_FORMS = ("lora", "vector", "constant", "none")


@dataclass(frozen=True, slots=True)
class Glora:
    """What a config of GLoRA says: the form of each part, one of ``_FORMS``."""

    r: int
    weight: str  # of A and B
    moved: str  # of C
    bias: str  # of D and E

    def lay_out(self, targets: Sequence[TargetModule], _faults: Faults, /) -> KindLayout:
        return KindLayout({module.name: self._plan(module) for module in targets})

    def _plan(self, module: TargetModule) -> ModulePlan:
        width_out, width_in = module.out_features, module.in_features
        moved, bias = (self.moved, self.bias) if module.bias else ("none", "none")
        slots: dict[str, Slot] = {}
        for part in "AB":
            slots |= self._part(module, part, self.weight, (width_out, width_in), (width_out, 1))
        slots |= self._part(module, "C", moved, (width_in, 1), (width_in, 1))
        for part in "DE":
            slots |= self._part(module, part, bias, (width_out,), (width_out,))
        return ModulePlan(slots, partial(_update, module), self.r if "lora" in (self.weight, moved) else 0)

    def _part(
        self, module: TargetModule, part: str, form: str, whole: tuple[int, ...], vector: tuple[int, ...]
    ) -> dict[str, Slot]:
        name = f"glora_{part}"
        if form == "lora":
            return {
                f"{part}.d": slot(module, f"{name}.Xd", whole[0], self.r),
                f"{part}.u": slot(module, f"{name}.Xu", self.r, whole[1]),
            }
        if form == "none":  # PEFT saves the zeros
            return {f"{part}.0": slot(module, f"{name}.zeros", *whole)}
        return {part: slot(module, f"{name}.X", *(vector if form == "vector" else (1,)))}


def _update(module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
    update = DenseOfWeight(module, partial(_change, tensors))
    return Shifted(update, partial(_shift, tensors)) if module.bias else update


def _change(tensors: Mapping[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    return weight * _value(tensors, "A") + _value(tensors, "B")


def _shift(
    tensors: Mapping[str, torch.Tensor], weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    assert weight is not None, "the base's weight shifts its bias"
    assert bias is not None, "a module without a bias has no shift"
    moved = (weight @ _value(tensors, "C"))[:, 0]
    return bias * _value(tensors, "D") + _value(tensors, "E") + moved


def _value(tensors: Mapping[str, torch.Tensor], part: str) -> torch.Tensor:
    """The matrix, vector or number that a part stands for, float32."""
    if f"{part}.d" in tensors:
        return tensors[f"{part}.d"].float() @ tensors[f"{part}.u"].float()
    return tensors[part if part in tensors else f"{part}.0"].float()


def _parse(reader: ConfigReader) -> Glora:
    return Glora(
        reader.rank("r", reader.value("r", 8)),
        reader.choice("config_A_B", _FORMS, "lora"),
        reader.choice("config_C", ("lora", "vector", "none"), "lora"),
        reader.choice("config_D_E", ("vector", "constant", "none"), "constant"),
    )


_SERVED = Treatment.SERVED

GLORA = WeightKind(
    "GLORA",
    options=(
        *COMMON,
        TARGETS[0],
        MODULES_TO_SAVE,
        RANK,
        Option("config_A_B", _SERVED, "what W is multiplied with, and what is added to it"),
        Option("config_C", _SERVED, "what W is multiplied with to be added to the bias"),
        Option("config_D_E", _SERVED, "what the bias is multiplied with, and what is added to it"),
        BIAS,
        *training_only("init_weights"),
    ),
    parse=_parse,
    endings=tuple(f"glora_{part}.{end}" for part in "ABCDE" for end in ("X", "Xd", "Xu", "zeros")),
    form="W ⊙ A + B, and b ⊙ D + E + W C",
    rank="none: ΔW as it is",
    cost="that of the whole weight",
)
