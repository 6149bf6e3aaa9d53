"""RoAd: pairs of outputs, the base's bias included, are rotated and scaled (https://arxiv.org/abs/2409.00119).

y' = R y: of a pair of outputs i and j the first becomes u_i y_i - v_i y_j, and the second u_j y_j + v_j y_i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import COMMON, MODULES_TO_SAVE, TARGETS, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.plans import refuse, slot
from manylora.adapters.format.kinds.rows import training_only
from manylora.adapters.format.kinds.updates import DenseOfWeight
from manylora.adapters.format.update import KindLayout, ModulePlan, Paired, Shifted, WeightUpdate

_NUMBERS = {"road_1": 1, "road_2": 2, "road_4": 4}  # angles that each variant has for two outputs


@dataclass(frozen=True, slots=True)
class Road:
    """What a config of RoAd says."""

    numbers: int  # angles, and scales, of two outputs
    group: int  # outputs of which the first half is paired with the second

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        unfit = [module for module in targets if module.out_features % self.group]
        refuse(f"group_size={self.group} does not divide the outputs of", unfit, faults)
        return KindLayout({module.name: self._plan(module) for module in targets})

    def _plan(self, module: TargetModule) -> ModulePlan:
        count = module.out_features // 2 * self.numbers
        slots = {"theta": slot(module, "road_theta", count), "alpha": slot(module, "road_alpha", count)}
        return ModulePlan(slots, partial(self._update, module))

    def _update(self, module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        angles = tensors["theta"].float(), tensors["alpha"].float()
        added = partial(self._added, *angles)
        update: WeightUpdate = DenseOfWeight(module, added)
        if module.bias:
            update = Shifted(update, partial(_shift, added))
        return Paired(update, self.group // 2, partial(self._pairs, *angles))

    def _added(self, theta: torch.Tensor, alpha: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """(R - I) times ``outputs`` [out, n]."""
        own, other = self._columns(theta, alpha)
        halves = outputs.reshape(-1, 2, self.group // 2, outputs.shape[1])
        partner = torch.stack((-halves[:, 1], halves[:, 0]), dim=1).view(outputs.shape)
        return (own - 1)[:, None] * outputs + other[:, None] * partner

    def _pairs(self, theta: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u and v with the sign that it has in each half of a group."""
        own, other = self._columns(theta, alpha)
        return own, (other.view(-1, 2, self.group // 2) * torch.tensor([-1.0, 1.0])[:, None]).flatten()

    def _columns(self, theta: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u and v [out]."""
        if self.numbers == 4:
            theta, alpha = theta.view(-1, 2, self.group), alpha.view(-1, 2, self.group)
            own, other = alpha[:, 0] * theta[:, 0].cos(), alpha[:, 1] * theta[:, 1].sin()
            return own.flatten(), other.flatten()
        if self.numbers == 1:
            theta, alpha = (t.view(-1, 1, self.group // 2).repeat(1, 2, 1).flatten() for t in (theta, alpha))
        return alpha * theta.cos(), alpha * theta.sin()


def _shift(
    added: Callable[[torch.Tensor], torch.Tensor], _: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    assert bias is not None, "a module without a bias has no shift"
    return added(bias[:, None])[:, 0]


def _parse(reader: ConfigReader) -> Road:
    group = reader.count("group_size", 64, least=2, most=_ANY)
    if group % 2:
        reader.wrong("group_size", "an even number", group)
    return Road(_NUMBERS[reader.choice("variant", tuple(_NUMBERS), "road_1")], group)


_ANY = 1 << 62  # what divides a module's outputs is bounded by them
_SERVED = Treatment.SERVED

ROAD = WeightKind(
    "ROAD",
    options=(
        *COMMON,
        TARGETS[0],
        MODULES_TO_SAVE,
        Option("variant", _SERVED, "road_1, road_2 or road_4"),
        Option("group_size", _SERVED, "an even divisor of the outputs"),
        *training_only("init_weights"),
    ),
    parse=_parse,
    endings=("road_theta", "road_alpha"),
    form="(R - I) W, and (R - I) b; R rotates and scales pairs of outputs",
    rank="none: two numbers an output",
    cost="next to nothing",
)
