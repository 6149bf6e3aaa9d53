"""Linear layers that are multiplied as one: their weights along out, in memory once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def stack(linears: Sequence[nn.Linear]) -> torch.Tensor:
    """The weights of ``linears`` [out_i, in], along out: [Σ out_i, in].

    From then on the layers hold parts of it: beside what is stacked there are never two copies of more than
    these layers. Those that hold parts already are not copied again.
    """
    weights = [linear.weight.detach() for linear in linears]
    if len(weights) == 1:
        return weights[0]
    whole = _whole(weights)
    if whole is not None:
        return whole
    whole = torch.cat(weights)
    for linear, part in zip(linears, whole.split([len(weight) for weight in weights]), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    return whole


def _whole(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """What ``weights`` are parts of, one after the other; None where they are not."""
    first, end = weights[0], weights[0].storage_offset()
    memory = first.untyped_storage().data_ptr()
    for weight in weights:
        in_place = weight.storage_offset() == end and weight.untyped_storage().data_ptr() == memory
        if not (in_place and weight.is_contiguous()):
            return None
        end += weight.numel()
    rows = sum(len(weight) for weight in weights)
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1), first.storage_offset())
