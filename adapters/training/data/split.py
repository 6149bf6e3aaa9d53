"""Holding rows out for evaluation."""

from __future__ import annotations

import random
from collections.abc import Sequence

from manylora.adapters.training.data.rows import Row, content_digest


def hold_out(rows: Sequence[Row], share: float, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Split ``rows`` into (train, eval) with about ``share`` of them held out, at least one.

    Equal rows stay on one side, so that the held-out rows are never trained on. The choice depends only on
    the rows and ``seed``; both sides keep the order of the file. With fewer than two different rows
    nothing is held out.
    """
    digests = [content_digest(row) for row in rows]
    different = sorted(set(digests))
    if len(different) < 2:
        return tuple(rows), ()
    count = min(len(different) - 1, max(1, round(share * len(different))))
    chosen = set(random.Random(seed).sample(different, count))
    train = tuple(row for row, digest in zip(rows, digests, strict=True) if digest not in chosen)
    held_out = tuple(row for row, digest in zip(rows, digests, strict=True) if digest in chosen)
    return train, held_out
