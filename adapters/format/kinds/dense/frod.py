"""FRoD: W in a basis that layers share, of which a diagonal and a few other entries are trained.

W' = U (S + diag(l)) Vᵀ, where U diag(n) Vᵀ = W for columns of U of length 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.config.reader import ConfigReader
from manylora.adapters.format.config.support import BIAS, Option, Treatment
from manylora.adapters.format.config.weight_kind import WeightKind
from manylora.adapters.format.faults import Faults
from manylora.adapters.format.kinds.plans import MAX_SIDE, refuse, slot
from manylora.adapters.format.kinds.rows import EVERY_KIND, no_effect, training_only
from manylora.adapters.format.kinds.updates import DenseOfWeight
from manylora.adapters.format.update import KindLayout, ModulePlan, NoUpdate, Slot, WeightUpdate


@dataclass(frozen=True, slots=True)
class Frod:
    """What a config of FRoD says."""

    density: float  # of S

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        large = [module for module in targets if module.in_features > MAX_SIDE]
        refuse(f"FRoD solves for the weights, of up to {MAX_SIDE} inputs", large, faults)
        widths: dict[str, int] = {}
        unlike = [m for m in targets if widths.setdefault(category(m.name), m.in_features) != m.in_features]
        refuse("modules of one name share a basis, but have not the same number of inputs", unlike, faults)
        bases = [self._basis(name, width) for name, width in widths.items()]
        shared = {part: each for basis in bases for part, each in basis.items()}
        return KindLayout({module.name: self._plan(module) for module in targets}, shared)

    def _count(self, width: int) -> int:
        """Entries of S that are trained."""
        count = min(int(width * width * self.density), width * (width - 1))
        return max(1, count) if self.density > 0 and width > 1 else count

    def _basis(self, name: str, width: int) -> dict[str, Slot]:
        return {
            f"v.{name}": Slot(f"base_model.frod_V.{name}", (width, width)),
            f"places.{name}": Slot(
                f"base_model.frod_s_indices.{name}", (2, self._count(width)), integers=True
            ),
            f"size.{name}": Slot(f"base_model.frod_s_size.{name}", (2,), integers=True),
        }

    def _plan(self, module: TargetModule) -> ModulePlan:
        slots = {
            "diagonal": slot(module, "frod_lambda_l", module.in_features),
            "values": slot(module, "frod_lambda_s_values", self._count(module.in_features)),
        }
        return ModulePlan(slots, partial(_update, module))


def category(name: str) -> str:
    """The modules with which one shares its basis, as PEFT names them."""
    parts = name.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    both = f"{parts[-2]}_{parts[-1]}"
    return "attention_output" if both == "output_dense" and parts[-3:-2] == ["attention"] else both


def _update(module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
    name = category(module.name)
    basis = {part: tensors[f"{part}.{name}"] for part in ("v", "places", "size")}
    return DenseOfWeight(module, partial(_change, basis | {p: tensors[p] for p in ("diagonal", "values")}))


def _change(tensors: Mapping[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    width, places = weight.shape[1], tensors["places"].long()
    outside = places.numel() and not 0 <= int(places.min()) <= int(places.max()) < width
    if outside or tensors["size"].tolist() != [width, width]:
        raise NoUpdate("entries that are changed lie outside of the basis")
    v = tensors["v"].float()
    inner = torch.diag(tensors["diagonal"].float())
    inner.index_put_((places[0], places[1]), tensors["values"].float(), accumulate=True)
    return _unit_columns(v, weight) @ inner @ v.T - weight


def _unit_columns(v: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """U [out, in] float32, solved for in float64 as PEFT does; a singular V has a pseudo-inverse."""
    v, w = v.double(), weight.double()
    try:
        columns = torch.linalg.solve(v, w.T).T
    except RuntimeError:
        columns = w @ torch.linalg.pinv(v, rtol=1e-6).T
    norms = columns.norm(dim=0)
    return torch.where(norms > 1e-12, columns / norms.clamp_min(1e-12), 0).float()


def _parse(reader: ConfigReader) -> Frod:
    if not reader.flag("save_projection", True):
        reader.wrong(
            "save_projection", "true: the bases depend on the signs of vectors found from all weights", False
        )
    return Frod(reader.number("sparse_rate", 0.01, least=0.0, most=1.0))


_SERVED = Treatment.SERVED

FROD = WeightKind(
    "FROD",
    options=(
        *EVERY_KIND,
        Option("sparse_rate", _SERVED, "the share of entries off the diagonal that are trained"),
        Option("save_projection", _SERVED, "true; bases that are not saved can't be found again for sure"),
        BIAS,
        no_effect("projection_prng_key", "the bases are saved"),
        no_effect("fan_in_fan_out", "the bases are those of W [out, in]"),
        no_effect("runtime_offload_base_weight", "where PEFT keeps the base"),
        *training_only("frod_dropout", "init_weights", "regularization_alpha", "progressbar"),
    ),
    parse=_parse,
    endings=("frod_lambda_l", "frod_lambda_s_values"),
    form="U (S + diag(l)) Vᵀ - W",
    rank="none: ΔW as it is",
    cost="that of the whole weight; seconds to minutes to load",
    strings_ignore_layers=True,
    shared=("base_model.frod_V.", "base_model.frod_s_indices.", "base_model.frod_s_size."),
)
