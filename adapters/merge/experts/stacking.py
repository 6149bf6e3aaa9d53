"""Changes to experts, written as PEFT stacks them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from manylora.adapters.format.experts import ExpertStack
from manylora.adapters.merge.lowrank import Factors


def stack_experts(stack: ExpertStack, factors: Mapping[str, Factors]) -> tuple[Factors, int] | None:
    """A [E r, in] by expert and B [out, r E] by rank, and r; None if ``factors`` have none of the experts'.

    All experts get the largest rank of any of them, the missing ranks being zeros.
    """
    found = [factors.get(name) for name in stack.matrices]
    rank = max((each.rank for each in found if each is not None), default=0)
    if not rank:
        return None
    a = torch.zeros(stack.experts, rank, stack.in_features)
    b = torch.zeros(stack.out_features, rank, stack.experts)
    for expert, each in enumerate(found):
        if each is not None:
            a[expert, : each.rank] = each.a
            b[:, : each.rank, expert] = each.b
    return Factors(a.flatten(0, 1), b.flatten(1, 2)), rank
