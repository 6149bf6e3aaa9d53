"""Positions and matrices that PEFT draws from a seed instead of saving them: the very same draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Positions = Callable[[tuple[int, int], int], tuple[torch.Tensor, torch.Tensor]]  # of a shape, and a count


def positions(seed: int, shape: tuple[int, int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns [count] of the entries of a matrix that FourierFT and WaveFT train.

    All positions are put in a random order, of which the first ones count: 8 bytes for each entry of the
    matrix, for as long as that takes.
    """
    height, width = shape
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))[:count].clone()
    return order // width, order % width


def random_bases(
    seed: int, *, rank: int, narrow: int, wide: int, sparsity: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """RandLoRA's shared bases A [rank, 1, narrow] and B [wide, bases, rank], with unit deviation.

    Dense ones are drawn and normalized in bfloat16, as PEFT does. With a ``sparsity`` s they hold -1 and 1
    with probability 1 / 2s each, and else 0.
    """
    generator = torch.Generator().manual_seed(seed)
    bases = -(-narrow // rank)
    if sparsity is None:
        a = _uniform((rank, 1, narrow), narrow, generator)
        b = torch.cat([_uniform((wide, 1, rank), rank, generator) for _ in range(bases)], dim=1)
    else:
        a = _signs((rank, 1, narrow), sparsity, generator)
        b = _signs((wide, bases, rank), sparsity, generator)
    return a / a.std(), b / b.std()


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> torch.Tensor:
    bound = math.sqrt(3.0) * (math.sqrt(2.0 / (1 + math.sqrt(5) ** 2)) / math.sqrt(fan_in))
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(-bound, bound, generator=generator)


def _signs(shape: tuple[int, ...], sparsity: float, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.rand(shape, generator=generator)
    share = 1 / (2 * sparsity)
    return (drawn > 1 - share).float() - (drawn < share).float()
