"""Singular values and vectors of weights, in float32 on the CPU as PEFT computes them."""

from __future__ import annotations

import torch

Triples = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # U [out, n], S [n], V [n, in]


def singular(weight: torch.Tensor) -> Triples:
    """All singular triples of W, the largest values first. Signs of vectors are those that LAPACK gives."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    return u, s, v


def largest_singular(weight: torch.Tensor, count: int, *, rounds: int, seed: int) -> Triples:
    """About the ``count`` largest, from random vectors (N. Halko et al., https://arxiv.org/abs/0909.4061).

    The draws and the steps of ``torch.svd_lowrank``, with a generator of their own.
    """
    wide = weight.shape[0] < weight.shape[1]
    matrix = weight.T if wide else weight
    start = torch.randn(matrix.shape[1], count, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(rounds):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (v.T, s, (basis @ u).T) if wide else (basis @ u, s, v)
