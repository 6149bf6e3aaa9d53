"""Orthogonal matrices from skew-symmetric ones: the Cayley transform, exact and as a series."""

from __future__ import annotations

import math

import torch

MAX_TERMS = 64  # of the series


def skew(upper: torch.Tensor, size: int) -> torch.Tensor:
    """The skew-symmetric matrices [n, size, size] whose entries above the diagonal are ``upper``.

    ``upper`` is [n, size (size - 1) / 2], row after row.
    """
    rows, columns = torch.triu_indices(size, size, 1)
    result = torch.zeros(len(upper), size, size)
    result[:, rows, columns] = upper.float()
    return result - result.transpose(1, 2)


def cayley(matrix: torch.Tensor) -> torch.Tensor:
    """(I - Q)(I + Q)⁻¹ for each skew-symmetric Q of ``matrix`` [n, size, size]; I + Q is never singular."""
    identity = torch.eye(matrix.shape[-1]).expand_as(matrix)
    result: torch.Tensor = torch.linalg.solve(identity + matrix, identity - matrix, left=False)
    return result


def cayley_series(matrix: torch.Tensor, terms: int) -> torch.Tensor:
    """PEFT's truncated series I + 2Q + 2Q² + … + Qᵏ of (I + Q)(I - Q)⁻¹ for Q of ``matrix`` [n, size, size].

    One term is I and two are I + 2Q; three give what four do.
    """
    result = torch.eye(matrix.shape[-1]).expand_as(matrix).clone()
    if terms < 2:
        return result
    result += 2 * matrix
    last = max(terms - 1, 3)
    power = matrix
    for exponent in range(2, last + 1 if terms > 2 else 0):
        power = power @ matrix
        result += power if exponent == last else 2 * power
    return result


def bounded(matrix: torch.Tensor, eps: float) -> torch.Tensor:
    """COFT: each of the n matrices scaled down to the norm ``eps`` / √n where it is larger."""
    limit = eps / math.sqrt(len(matrix))
    norms = matrix.norm(dim=(1, 2), keepdim=True)
    return torch.where(norms <= limit, matrix, matrix * (limit / norms.clamp_min(1e-38)))
