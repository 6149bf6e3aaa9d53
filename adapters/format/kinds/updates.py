"""The forms that changes of weights take: factors of a low rank, or the change as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from manylora.adapters.format.base import TargetModule

Factors = tuple[torch.Tensor, torch.Tensor]  # A [rank, in] and B [out, rank], float32


@dataclass(frozen=True, slots=True)
class LowRank:
    """ΔW = B A of a rank that is known before; A and B are made when they are asked for."""

    rank: int
    stated_rank: int
    make: Callable[[], Factors]

    @property
    def needs_weight(self) -> bool:
        return False

    def factors(self, _weight: torch.Tensor | None, /) -> Factors:
        return self.make()

    def change(self, _weight: torch.Tensor | None, /) -> torch.Tensor:
        a, b = self.make()
        return b @ a


@dataclass(frozen=True, slots=True)
class LowRankOfWeight:
    """ΔW = B A, of which the weight itself decides."""

    rank: int
    stated_rank: int
    make: Callable[[torch.Tensor], Factors]  # from W [out, in] float32 on the CPU

    @property
    def needs_weight(self) -> bool:
        return True

    def factors(self, weight: torch.Tensor | None, /) -> Factors:
        assert weight is not None, "this update needs the weight"
        return self.make(weight.to("cpu", torch.float32).contiguous())

    def change(self, weight: torch.Tensor | None, /) -> torch.Tensor:
        a, b = self.factors(weight)
        return b @ a


@dataclass(frozen=True, slots=True)
class Dense:
    """ΔW as a whole, of any rank. As factors it is one of the two, and the other is the identity."""

    module: TargetModule
    make: Callable[[], torch.Tensor]  # ΔW [out, in] float32
    stated_rank: int = 0

    @property
    def rank(self) -> int:
        return full_rank(self.module)

    @property
    def needs_weight(self) -> bool:
        return False

    def factors(self, _weight: torch.Tensor | None, /) -> Factors:
        return whole(self.make())

    def change(self, _weight: torch.Tensor | None, /) -> torch.Tensor:
        return self.make()


@dataclass(frozen=True, slots=True)
class DenseOfWeight:
    """ΔW as a whole, of which the weight itself decides."""

    module: TargetModule
    make: Callable[[torch.Tensor], torch.Tensor]  # ΔW [out, in] from W [out, in], both float32 on the CPU
    stated_rank: int = 0

    @property
    def rank(self) -> int:
        return full_rank(self.module)

    @property
    def needs_weight(self) -> bool:
        return True

    def factors(self, weight: torch.Tensor | None, /) -> Factors:
        return whole(self.change(weight))

    def change(self, weight: torch.Tensor | None, /) -> torch.Tensor:
        assert weight is not None, "this update needs the weight"
        return self.make(weight.to("cpu", torch.float32).contiguous())


def full_rank(module: TargetModule) -> int:
    """Rank pages that any change of the module's weight fits in."""
    return min(module.in_features, module.out_features)


def whole(change: torch.Tensor) -> Factors:
    """A and B of a change [out, in] as it is: exact in any dtype, since the identity is."""
    out_features, in_features = change.shape
    if out_features <= in_features:
        return change, torch.eye(out_features)
    return torch.eye(in_features), change
