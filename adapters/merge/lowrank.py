"""Low-rank arithmetic: exact sums by rank concatenation, and the best approximation of a given rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from manylora.adapters.format.weights.delta import ModuleDelta


@dataclass(frozen=True)
class Factors:
    """``B A``, with nothing left to scale."""

    a: torch.Tensor  # [r, in] float32
    b: torch.Tensor  # [out, r] float32

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True)
class Energy:
    """Sums of squares of a matrix: how much there was and how much an approximation left out."""

    total: float
    lost: float

    @property
    def share_lost(self) -> float:
        """From 0 to 1; 0 of nothing is 0."""
        return self.lost / self.total if self.total else 0.0

    def __add__(self, other: Energy) -> Energy:
        return Energy(self.total + other.total, self.lost + other.lost)


NO_ENERGY = Energy(0.0, 0.0)


def concatenate(parts: Sequence[tuple[ModuleDelta, float]]) -> Factors:
    """``Σ w s B A`` exactly: the members' ranks side by side, weight and scaling folded into B.

    A's and B's are never added up: (ΣB)(ΣA) has cross terms that the sum has not.
    """
    factors = [(*delta.factors(), weight) for delta, weight in parts]
    a = torch.cat([a.float() for a, _, _ in factors])
    return Factors(a, torch.cat([b * weight for _, b, weight in factors], dim=1))


def truncate(factors: Factors, rank: int) -> tuple[Factors, Energy]:
    """The closest product of at most ``rank``, without ever forming the [out, in] matrix.

    With A^T = Q R it is (B R^T) Q^T, whose singular values are those of the small left factor.
    """
    q, r = torch.linalg.qr(factors.a.double().T)
    left, energy = _project(factors.b.double() @ r.T, rank)
    return Factors((left.a @ q.T).float(), left.b.float()), energy


def approximate(matrix: torch.Tensor, rank: int) -> tuple[Factors, Energy]:
    """The closest product of at most ``rank`` to ``matrix`` [out, in]."""
    dense = matrix.double()
    if dense.shape[0] >= dense.shape[1]:
        found, energy = _project(dense, rank)
        return Factors(found.a.float(), found.b.float()), energy
    found, energy = _project(dense.T, rank)
    return Factors(found.b.T.float(), found.a.T.float()), energy


def _project(matrix: torch.Tensor, rank: int) -> tuple[Factors, Energy]:
    """``M V`` and ``V^T``, V the leading right singular vectors of M [m, n]; in double precision.

    They are the eigenvectors of M^T M: of the smaller side, where the full decomposition would work on both.
    """
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    kept = min(rank, matrix.shape[1], _numerical_rank(values))
    v = vectors.flip(1)[:, :kept]
    b = matrix @ v
    total = float(matrix.square().sum())
    lost = float((matrix - b @ v.T).square().sum())
    return Factors(v.T.contiguous(), b), Energy(total, lost)


def _numerical_rank(values: torch.Tensor) -> int:
    """How many eigenvalues of M^T M are more than rounding; at least one."""
    return max(1, int((values > values[-1] * 1e-14).sum()))
