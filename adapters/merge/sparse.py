"""Methods that thin the members' weight changes out before adding them up, on the changes themselves.

PEFT's methods of the same names without ``_svd`` work on A and on B separately, which is something else:
the product of two thinned factors is not the thinned product.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from manylora.adapters.merge.recipe import Recipe


def merge_sparse(
    changes: Sequence[tuple[str, torch.Tensor, float]], module: str, recipe: Recipe
) -> torch.Tensor:
    """One change [out, in] of several (digest, change [out, in] float32, weight).

    TIES: Yadav et al., https://arxiv.org/abs/2306.01708; DARE: Yu et al., https://arxiv.org/abs/2311.03099.
    The sign is elected among the weighted changes, so that a negative weight turns its member around.
    """
    assert recipe.density is not None
    thinned = [
        weight
        * (
            keep_random(change, recipe.density, _generator(recipe.seed, digest, module))
            if recipe.method.startswith("dare")
            else keep_largest(change, recipe.density)
        )
        for digest, change, weight in changes
    ]
    if recipe.method in ("ties", "dare_ties"):
        assert recipe.sign_method is not None
        return disjoint_mean(torch.stack(thinned), recipe.sign_method)
    return torch.stack(thinned).sum(0)


def keep_largest(change: torch.Tensor, density: float) -> torch.Tensor:
    """``change`` with all but the ``density`` largest values set to 0."""
    count = int(density * change.numel())
    flat = change.flatten()
    kept = torch.zeros_like(flat)
    places = flat.abs().topk(count).indices
    kept[places] = flat[places]
    return kept.view(change.shape)


def keep_random(change: torch.Tensor, density: float, generator: torch.Generator) -> torch.Tensor:
    """``change`` with each value dropped with probability 1 - density, the others divided by density.

    Without the division the sum would shrink: it is what keeps its expectation.
    """
    mask = torch.rand(change.shape, generator=generator) < density
    return change * mask / density


def disjoint_mean(changes: torch.Tensor, sign_method: str) -> torch.Tensor:
    """Per weight, the mean of those of ``changes`` [K, ...] that have the elected sign.

    The sign is that of the sum ("total") or that of more members ("frequency"); a tied vote is decided by
    the sum, where PEFT takes the positive side.
    """
    elected = changes.sum(0).sign()
    if sign_method == "frequency":
        votes = changes.sign().sum(0).sign()
        elected = torch.where(votes == 0, elected, votes)
    agreeing = (changes.sign() == elected) & (elected != 0)
    return (changes * agreeing).sum(0) / agreeing.sum(0).clamp_min(1)


def _generator(seed: int | None, digest: str, module: str) -> torch.Generator:
    """Draws of their own for every member and module: they do not depend on who else is merged."""
    text = f"{seed}/{digest}/{module}".encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
    return torch.Generator().manual_seed(number)
