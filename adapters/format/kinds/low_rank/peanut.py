"""PEANuT: a small network computes the change of W from W itself (https://arxiv.org/abs/2410.01870).

The change is s (h Bᵀ)ᵀ for the last layer h [in, r] of the network, whose input are the rows of Wᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import EXCLUDE, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.plans import slot
from manylora.adapters.format.kinds.rows import EVERY_KIND, RANK, training_only
from manylora.adapters.format.kinds.updates import DenseOfWeight, Factors, LowRankOfWeight, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, WeightUpdate

MAX_DEPTH = 64
Activation = Callable[[torch.Tensor], torch.Tensor]

# PEFT takes any activation of transformers by name; these are the ones without state.
_ACTIVATIONS: Mapping[str, Activation] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_python": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_fast": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "gelu_accurate": partial(functional.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
    "swish": functional.silu,
    "mish": functional.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": torch.clone,
    "leaky_relu": functional.leaky_relu,
    "relu2": lambda x: torch.relu(x).square(),
    "relu6": functional.relu6,
}


@dataclass(frozen=True, slots=True)
class Peanut:
    """What a config of PEANuT says."""

    r: int
    depth: int
    activation: Activation
    scaling: float

    def lay_out(self, targets: Sequence[TargetModule], _faults: Faults, /) -> KindLayout:
        return KindLayout({module.name: self._plan(module) for module in targets})

    def _plan(self, module: TargetModule) -> ModulePlan:
        slots = {
            "a": slot(module, "peanut_A.weight", self.r, module.out_features),
            "b": slot(module, "peanut_B.weight", module.out_features, self.r),
        }
        for name in ("encoders", "decoders"):
            for index in range(self.depth):
                slots[f"{name}{index}"] = slot(module, f"peanut_{name}.{index}.weight", self.r, self.r)
        return ModulePlan(slots, partial(self._update, module), self.r)

    def _update(self, module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        make = partial(self._factors, tensors)
        if self.r < full_rank(module):
            return LowRankOfWeight(self.r, self.r, make)
        return DenseOfWeight(module, lambda weight: _product(make(weight)), self.r)

    def _factors(self, tensors: Mapping[str, torch.Tensor], weight: torch.Tensor) -> Factors:
        hidden = self.activation(weight.T @ tensors["a"].float().T)
        passed = []
        for index in range(self.depth):
            passed.append(hidden)
            hidden = self.activation(hidden @ tensors[f"encoders{index}"].float().T)
        for index in range(self.depth):
            hidden = self.activation(hidden @ tensors[f"decoders{index}"].float().T) + passed.pop()
        return hidden.T, tensors["b"].float() * self.scaling


def _product(factors: Factors) -> torch.Tensor:
    a, b = factors
    return b @ a


def _parse(reader: ConfigReader) -> Peanut:
    return Peanut(
        reader.rank("r", reader.value("r", 32)),
        reader.count("depth", 0, least=0, most=MAX_DEPTH),
        _ACTIVATIONS[reader.choice("act_fn", tuple(_ACTIVATIONS), "relu")],
        reader.number("scaling", 1.0),
    )


_SERVED = Treatment.SERVED

PEANUT = WeightKind(
    "PEANUT",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        RANK,
        Option("depth", _SERVED, f"encoders, and as many decoders, up to {MAX_DEPTH}"),
        Option("act_fn", _SERVED, ", ".join(_ACTIVATIONS)),
        Option("scaling", _SERVED, "any number"),
        *training_only("init_weights"),
    ),
    parse=_parse,
    endings=(
        "peanut_A.weight",
        "peanut_B.weight",
        *(f"peanut_{side}.{n}.weight" for side in ("encoders", "decoders") for n in range(MAX_DEPTH)),
    ),
    form="s (f(Wᵀ Aᵀ) Bᵀ)ᵀ, f a small network",
    rank="r",
    cost="as LoRA of its rank",
    strings_ignore_layers=True,
)
