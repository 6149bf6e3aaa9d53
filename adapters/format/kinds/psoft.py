"""PSOFT: W is turned within the space of its largest singular values (https://arxiv.org/abs/2505.11235).

W' = W + U √S (R - I) √S V, or with all of S at U, where U S V are W's r largest singular triples. The result
depends on the signs of singular vectors, which are those that LAPACK gives: PEFT saves none either.
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
from manylora.adapters.format.kinds.decompositions import Triples, largest_singular, singular
from manylora.adapters.format.kinds.plans import DECOMPOSES, refuse, slot, too_large
from manylora.adapters.format.kinds.rotations import MAX_TERMS, cayley, cayley_series, skew
from manylora.adapters.format.kinds.rows import EVERY_KIND, RANK, no_effect, training_only
from manylora.adapters.format.kinds.updates import DenseOfWeight, Factors, LowRankOfWeight, full_rank
from manylora.adapters.format.update import KindLayout, ModulePlan, WeightUpdate

_MAX_ROUNDS = 64


@dataclass(frozen=True, slots=True)
class Psoft:
    """What a config of PSOFT says."""

    r: int
    orthogonal: bool  # whether R is made from a skew-symmetric matrix; else it is stored
    magnitudes: tuple[str, ...]  # "vector_b" for the rows of R, "vector_a" for its columns
    symmetric: bool  # whether √S stands on both sides ("pissa_init")
    terms: int | None  # of the series; None: the exact transform
    eps: float | None  # a bound on the norm, before the series
    rounds: int | None  # of the approximate decomposition; None: the exact one
    seed: int

    def lay_out(self, targets: Sequence[TargetModule], faults: Faults) -> KindLayout:
        small = [module for module in targets if self.r > full_rank(module)]
        refuse(f"r={self.r} is more than the inputs or outputs of", small, faults)
        large = (
            too_large(targets) if self.rounds is None else ()
        )  # random vectors find the largest in no time
        refuse(f"PSOFT with psoft_svd=full {DECOMPOSES}", large, faults)
        return KindLayout({module.name: self._plan(module) for module in targets})

    def _plan(self, module: TargetModule) -> ModulePlan:
        shape = (self.r * (self.r - 1) // 2,) if self.orthogonal else (self.r, self.r)
        slots = {"matrix": slot(module, "psoft_R.weight", *shape)}
        slots |= {name: slot(module, f"psoft_R.{name}", self.r) for name in self.magnitudes}
        return ModulePlan(slots, partial(self._update, module), self.r)

    def _update(self, module: TargetModule, tensors: Mapping[str, torch.Tensor]) -> WeightUpdate:
        make = partial(self._factors, tensors)
        if self.r < full_rank(module):
            return LowRankOfWeight(self.r, self.r, make)
        return DenseOfWeight(module, lambda weight: _product(make(weight)), self.r)

    def _factors(self, tensors: Mapping[str, torch.Tensor], weight: torch.Tensor) -> Factors:
        u, s, v = self._triples(weight)
        turned = self._rotation(tensors) - torch.eye(self.r)
        if self.symmetric:
            return turned @ (s.sqrt()[:, None] * v), u * s.sqrt()
        return turned @ v, u * s

    def _triples(self, weight: torch.Tensor) -> Triples:
        if self.rounds is not None:
            return largest_singular(weight, self.r, rounds=self.rounds, seed=self.seed)
        u, s, v = singular(weight)
        return u[:, : self.r], s[: self.r], v[: self.r]

    def _rotation(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """R [r, r] float32."""
        result = self._orthogonal(tensors["matrix"]) if self.orthogonal else tensors["matrix"].float()
        if "vector_b" in tensors:
            result = tensors["vector_b"].float()[:, None] * result
        return result * tensors["vector_a"].float() if "vector_a" in tensors else result

    def _orthogonal(self, upper: torch.Tensor) -> torch.Tensor:
        matrix = skew(upper[None], self.r)
        if self.terms is None:
            return cayley(-matrix)[0]
        norm = float(matrix.norm())
        if self.eps is not None and norm > self.eps:
            matrix = matrix * (self.eps / (norm + 1e-12))
        return cayley_series(matrix, self.terms)[0]


def _product(factors: Factors) -> torch.Tensor:
    a, b = factors
    return b @ a


def _parse(reader: ConfigReader) -> Psoft:
    series = reader.flag("use_cayley_neumann")
    terms = reader.count("num_cayley_neumann_terms", 5, most=MAX_TERMS)
    rounds = reader.count("psoft_svd_lowrank_niter", 10, least=0, most=_MAX_ROUNDS)
    bounded = series and reader.value("cayley_neumann_eps", None) is not None
    magnitudes = ("b", "a")
    return Psoft(
        reader.rank("r", reader.value("r", 32)),
        reader.flag("psoft_orth", True),
        tuple(f"vector_{side}" for side in magnitudes if reader.flag(f"psoft_mag_{side}", True)),
        reader.choice("ab_svd_init", ("psoft_init", "pissa_init"), "psoft_init") == "pissa_init",
        terms if series else None,
        reader.number("cayley_neumann_eps", 0.9, least=0.0, most=1.0) if bounded else None,
        rounds if reader.choice("psoft_svd", ("full", "lowrank"), "full") == "lowrank" else None,
        reader.random_seed("random_seed", 0),
    )


_SERVED = Treatment.SERVED

PSOFT = WeightKind(
    "PSOFT",
    options=(
        *EVERY_KIND,
        EXCLUDE,
        RANK,
        Option("psoft_orth", _SERVED, "an orthogonal R, or any"),
        Option("psoft_mag_b", _SERVED, "factors of its rows"),
        Option("psoft_mag_a", _SERVED, "factors of its columns"),
        Option("ab_svd_init", _SERVED, "psoft_init or pissa_init"),
        Option("use_cayley_neumann", _SERVED, "the series in place of the exact transform"),
        Option("num_cayley_neumann_terms", _SERVED, f"of the series, up to {MAX_TERMS}"),
        Option("cayley_neumann_eps", _SERVED, "a bound on the norm, with the series"),
        Option("psoft_svd", _SERVED, "full or lowrank: the weights are decomposed as PEFT does"),
        Option("psoft_svd_lowrank_niter", _SERVED, f"up to {_MAX_ROUNDS}; read with psoft_svd=lowrank"),
        Option("random_seed", _SERVED, "read with psoft_svd=lowrank"),
        no_effect("psoft_alpha", "it cancels out"),
        no_effect("fan_in_fan_out", "PSOFT is of nn.Linear only"),
        *training_only("psoft_dropout", "init_weights"),
    ),
    parse=_parse,
    endings=("psoft_R.weight", "psoft_R.vector_a", "psoft_R.vector_b"),
    form="U √S (R - I) √S V, of W's largest singular values",
    rank="r",
    cost="as LoRA of its rank; seconds to minutes to load",
)
