"""Causal attention of packed sequences on a GPU: PyTorch's flash attention by their lengths."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from manylora.adapters.training.decoder.attention import Heads
from manylora.adapters.training.decoder.batch import Packed


def flash_attend(q: Tensor, k: Tensor, v: Tensor, batch: Packed, heads: Heads) -> tuple[Tensor, ...]:
    """q, k, v as leaves of a graph of their own, and what was read from them by it.

    Args:
        q: [tokens, query heads, width]; k, v: [tokens, key heads, width].
    """
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  (only where there is a GPU)

    edges = torch.tensor([0, *accumulate(batch.lengths)], dtype=torch.int32, device=q.device)
    longest = max(batch.lengths)
    q, k, v = (x.detach().contiguous().requires_grad_(True) for x in (q, k, v))
    with torch.enable_grad():
        read = varlen_attn(
            q, k, v, edges, edges, longest, longest,
            scale=heads.scale, window_size=(-1, 0), enable_gqa=heads.group > 1,
        )  # fmt: skip
    assert isinstance(read, Tensor), "no log-sum was asked for"
    return q, k, v, read
