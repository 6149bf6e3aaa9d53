"""Causal attention of packed sequences and its gradient, block by block of queries.

No matrix over the whole batch and no mask between sequences: a bucket of sequences is one batched product,
and of a long sequence BLOCK queries at a time meet the keys up to them. Sequences are filled up at their end,
where no query of theirs looks. Scores are computed again in the backward pass, so what is kept grows with the
tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from manylora.adapters.training.decoder.batch import Bucket, Packed

BLOCK = 256  # queries of a sequence at a time


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads there are, and how wide."""

    queries: int
    keys: int
    width: int
    scale: float

    @property
    def group(self) -> int:
        """Query heads that share a head of keys."""
        return self.queries // self.keys


def attend(q: Tensor, k: Tensor, v: Tensor, batch: Packed, heads: Heads) -> Tensor:
    """What every token reads: [tokens, query heads, width] from itself and those before it in its sequence.

    Args:
        q: [tokens, query heads, width]; k, v: [tokens, key heads, width].
    """
    read = torch.empty_like(q)
    for bucket in batch.buckets:
        queries, keys, values = (_spread(x, bucket, heads) for x in (q, k, v))
        parts = [
            torch.bmm(_weights(queries, keys, start, end, heads), values[:, :end])
            for start, end in _blocks(bucket.length)
        ]
        _gather(_join(parts, bucket, heads), bucket, read)
    return read


def attend_backward(
    grad: Tensor, inputs: tuple[Tensor, Tensor, Tensor], batch: Packed, heads: Heads
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``inputs`` q, k and v from that of what was read, shapes as in :func:`attend`."""
    q, k, v = inputs
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for bucket in batch.buckets:
        queries, keys, values, wanted = (_spread(x, bucket, heads) for x in (q, k, v, grad))
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (keys, values))
        parts = []
        for start, end in _blocks(bucket.length):
            weights = _weights(queries, keys, start, end, heads)
            rows = _rows(wanted, start, end, heads)
            dv[:, :end] += weights.mT @ rows
            scores = torch.bmm(rows, values[:, :end].mT)
            scores = torch._softmax_backward_data(scores, weights, -1, weights.dtype).mul_(heads.scale)
            dk[:, :end] += scores.mT @ _rows(queries, start, end, heads)
            parts.append(torch.bmm(scores, keys[:, :end]))
        _gather(_join(parts, bucket, heads), bucket, grads[0])
        for found, whole in ((dk, grads[1]), (dv, grads[2])):
            _gather(found.view(bucket.count, heads.keys, 1, bucket.length, heads.width), bucket, whole)
    return grads


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _spread(x: Tensor, bucket: Bucket, heads: Heads) -> Tensor:
    """The bucket's tokens of x [tokens, heads, width] as [sequences * key heads, group * length, width]."""
    tokens = x.index_select(0, bucket.tokens)
    if len(bucket.places) < bucket.count * bucket.length:
        filled = x.new_zeros(bucket.count * bucket.length, *x.shape[1:])
        tokens = filled.index_copy_(0, bucket.places, tokens)
    split = tokens.view(bucket.count, bucket.length, heads.keys, -1, heads.width)
    return split.permute(0, 2, 3, 1, 4).reshape(bucket.count * heads.keys, -1, heads.width)


def _rows(x: Tensor, start: int, end: int, heads: Heads) -> Tensor:
    """The queries from ``start`` to ``end`` of every head: [batch, group * (end - start), width]."""
    split = x.view(x.shape[0], heads.group, -1, heads.width)
    return split[:, :, start:end].reshape(x.shape[0], -1, heads.width)


def _weights(queries: Tensor, keys: Tensor, start: int, end: int, heads: Heads) -> Tensor:
    """The attention of a block of queries to the keys up to it: [batch, group * (end - start), end]."""
    ahead = torch.full((end - start, end), float("-inf"), dtype=queries.dtype, device=queries.device)
    mask = ahead.triu_(start + 1).repeat(heads.group, 1)
    scores = torch.baddbmm(mask, _rows(queries, start, end, heads), keys[:, :end].mT, alpha=heads.scale)
    return torch.softmax(scores, -1)


def _join(parts: list[Tensor], bucket: Bucket, heads: Heads) -> Tensor:
    """Blocks of queries one behind the other: [sequences, key heads, group, length, width]."""
    split = [part.view(bucket.count, heads.keys, heads.group, -1, heads.width) for part in parts]
    return split[0] if len(split) == 1 else torch.cat(split, dim=3)


def _gather(spread: Tensor, bucket: Bucket, into: Tensor) -> None:
    """Put [sequences, key heads, group, length, width] back to the tokens of ``into``, unfilled."""
    rows = spread.permute(0, 3, 1, 2, 4).reshape(bucket.count * bucket.length, *into.shape[1:])
    if len(bucket.places) < bucket.count * bucket.length:
        rows = rows.index_select(0, bucket.places)
    into.index_copy_(0, bucket.tokens, rows.to(into.dtype))
