"""Greedy answers by the fused decoder, with keys and values kept, base and adapter in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from manylora.adapters.training.decoder.attention import Heads, attend
from manylora.adapters.training.decoder.batch import Packed
from manylora.adapters.training.decoder.decoder import FusedDecoder
from manylora.adapters.training.decoder.layer import LayerOperands


class _Cache:
    """Keys and values of one layer: [rows, key heads, positions, width] each."""

    def __init__(self, rows: int, positions: int, heads: Heads, like: Tensor) -> None:
        self._heads = heads
        self._keys, self._values = (
            like.new_zeros(rows, heads.keys, positions, heads.width) for _ in range(2)
        )

    def fill(self, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor) -> None:
        """Keep what tokens [tokens, key heads, width] at ``positions`` of ``rows`` have."""
        self._keys[rows, :, positions] = k
        self._values[rows, :, positions] = v

    def read(self, q: Tensor, positions: Tensor) -> Tensor:
        """One query a row [rows, query heads, width] reads up to its position."""
        longest = int(positions.max()) + 1
        hidden = torch.arange(longest, device=q.device)[None] > positions[:, None]
        mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, float("-inf"))
        grouped = q.view(len(q), self._heads.keys, self._heads.group, self._heads.width)
        read = functional.scaled_dot_product_attention(
            grouped,
            self._keys[:, :, :longest],
            self._values[:, :, :longest],
            attn_mask=mask[:, None, None],
            scale=self._heads.scale,
        )
        return read.reshape(q.shape)


@torch.no_grad()
def answer_tokens(
    decoder: FusedDecoder, prompts: Sequence[list[int]], *, adapted: int, ends: frozenset[int], limit: int
) -> list[list[int]]:
    """What each prompt is answered with, up to an end token, which is part of the answer, or to ``limit``.

    The first ``adapted`` prompts are answered with the decoder's (one) adapter, the others by the base.
    """
    lengths = tuple(len(prompt) for prompt in prompts)
    ids = torch.tensor([token for prompt in prompts for token in prompt], device=decoder.device)
    batch = Packed(ids, lengths, (slice(0, sum(lengths[:adapted])),))
    rows = torch.repeat_interleave(torch.tensor(lengths, device=decoder.device))
    x = decoder.embedding(ids).to(decoder.dtype)
    angles = decoder.angles(batch.positions, x)
    caches = []
    for layer in decoder.layers:
        operands = layer.operands()
        cache = _Cache(len(prompts), max(lengths) + limit, layer.heads, x)
        caches.append((cache, operands))

        def first(
            q: Tensor, k: Tensor, v: Tensor, cache: _Cache = cache, heads: Heads = layer.heads
        ) -> Tensor:
            cache.fill(k, v, rows, batch.positions)
            return attend(q, k, v, batch, heads)

        x = layer.infer(x, angles, batch.slices, first, operands)
    positions = torch.tensor(lengths, device=decoder.device)
    tokens = decoder.logits(x[positions.cumsum(0) - 1]).argmax(-1)
    answers: list[list[int]] = [[] for _ in prompts]
    slices = (slice(0, adapted),)
    for _ in range(limit):
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            if not answer or answer[-1] not in ends:
                answer.append(token)
        if all(len(answer) == limit or answer[-1] in ends for answer in answers):
            break
        tokens = _next(decoder, caches, tokens, positions, slices)
        positions = positions + 1
    return answers


def _next(
    decoder: FusedDecoder,
    caches: Sequence[tuple[_Cache, LayerOperands]],
    tokens: Tensor,
    positions: Tensor,
    slices: Sequence[slice],
) -> Tensor:
    """The likeliest tokens after ``tokens``, one a row, at ``positions``."""
    x = decoder.embedding(tokens).to(decoder.dtype)
    angles = decoder.angles(positions, x)
    rows = torch.arange(len(tokens), device=tokens.device)
    for layer, (cache, operands) in zip(decoder.layers, caches, strict=True):

        def read(q: Tensor, k: Tensor, v: Tensor, cache: _Cache = cache) -> Tensor:
            cache.fill(k, v, rows, positions)
            return cache.read(q, positions)

        x = layer.infer(x, angles, slices, read, operands)
    return decoder.logits(x).argmax(-1)
