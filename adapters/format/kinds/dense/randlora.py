"""RandLoRA: a full-rank sum of fixed random bases, scaled by what is trained (https://arxiv.org/abs/2502.00987)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import BIAS, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.draws import random_bases
from manylora.adapters.format.kinds.plans import refuse, slot
from manylora.adapters.format.kinds.rows import EVERY_KIND, no_effect, training_only
from manylora.adapters.format.kinds.updates import Dense, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, NoUpdate, Slot, WeightUpdate

Bases = tuple[torch.Tensor, torch.Tensor]  # A [r, 1, narrow] and B [wide, bases, r]
Draw = Callable[[], Bases]


@dataclass(frozen=True, slots=True)
class RandLora:
    """What a config of RandLoRA says."""

    r: int
    alpha: float
    seed: int | None  # None: the bases are saved
    sparse: bool
    very_sparse: bool

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        outputs, inputs = max(m.out_features for m in targets), max(m.in_features for m in targets)
        narrow, wide = min(outputs, inputs), max(outputs, inputs)
        refuse(f"r={self.r} is more than the inputs or outputs of", targets if self.r > wide else (), faults)
        draw = cache(partial(self._draw, narrow, wide))
        shared = {} if self.seed is not None else self._bases("base_model.", narrow, wide)
        plans = {module.name: self._plan(module, narrow, wide, draw) for module in targets}
        return KindLayout(plans, {f"shared_{part}": each for part, each in shared.items()})

    def _bases(self, prefix: str, narrow: int, wide: int) -> dict[str, Slot]:
        return {
            "A": Slot(f"{prefix}randlora_A", (self.r, 1, narrow)),
            "B": Slot(f"{prefix}randlora_B", (wide, -(-narrow // self.r), self.r)),
        }

    def _draw(self, narrow: int, wide: int) -> Bases:
        assert self.seed is not None, "saved bases are not drawn"
        sparsity = math.sqrt(narrow) if self.very_sparse else 3.0 if self.sparse else None
        return random_bases(self.seed, rank=self.r, narrow=narrow, wide=wide, sparsity=sparsity)

    def _plan(self, module: TargetModule, narrow: int, wide: int, draw: Draw) -> ModulePlan:
        side = full_rank(module)
        bases = -(-side // self.r)
        slots = {
            "scale": slot(module, "randlora_lambda", self.r, bases),
            "gamma": slot(module, "randlora_gamma", bases, side),
        }
        if self.seed is None:  # PEFT saves them once more with every module
            slots |= self._bases(slot(module, "").key, narrow, wide)
        return ModulePlan(slots, partial(self._update, module, draw), self.r)

    def _update(self, module: TargetModule, draw: Draw, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        return Dense(module, partial(self._change, module, draw, tensors), self.r)

    def _change(self, module: TargetModule, draw: Draw, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self.seed is None:
            a, b = tensors["shared_A"], tensors["shared_B"]
            if not (torch.equal(a, tensors["A"]) and torch.equal(b, tensors["B"])):
                raise NoUpdate("randlora_A or randlora_B of the module is not that of the adapter")
        else:
            a, b = draw()
        narrow, wide = sorted((module.in_features, module.out_features))
        scale, gamma = tensors["scale"].float(), tensors["gamma"].float()
        scaled = scale[:, :, None] * a[:, :, :narrow].float() * gamma
        # The rows of A are numbered rank first and the columns of B base first: so it is in PEFT.
        outer = b[:wide, : scale.shape[1]].float().flatten(1)
        change = outer @ scaled.flatten(0, 1) * (self.alpha / self.r)
        return change if narrow == module.in_features else change.T


def _parse(reader: ConfigReader) -> RandLora:
    return RandLora(
        reader.rank("r", reader.value("r", 32)),
        reader.number("randlora_alpha", 640.0),
        reader.seed("projection_prng_key", 0, saved="save_projection"),
        reader.flag("sparse"),
        reader.flag("very_sparse"),
    )


_SERVED = Treatment.SERVED

RANDLORA = WeightKind(
    "RANDLORA",
    options=(
        *EVERY_KIND,
        Option("r", _SERVED, "1 up to the server's --max-lora-rank"),
        Option("randlora_alpha", _SERVED, "any number; the scaling is randlora_alpha / r"),
        Option("save_projection", _SERVED, "without saved bases they are drawn anew, as PEFT does"),
        Option("projection_prng_key", _SERVED, "the seed of bases that are not saved"),
        Option("sparse", _SERVED, "read where bases are not saved"),
        Option("very_sparse", _SERVED, "read where bases are not saved"),
        BIAS,
        no_effect("fan_in_fan_out", "the bases lie the same way on nn.Linear and Conv1D"),
        *training_only("randlora_dropout", "init_weights"),
    ),
    parse=_parse,
    endings=("randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B"),
    form="s Σ Bᵢ Λᵢ A Γᵢ",
    rank="none: ΔW as it is",
    cost="that of the whole weight",
    strings_ignore_layers=True,
    shared=("base_model.randlora_A", "base_model.randlora_B"),
)
