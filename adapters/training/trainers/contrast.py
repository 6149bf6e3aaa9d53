"""The losses of texts that belong together, and which texts of a batch are no counterexamples.

Ours rather than sentence-transformers', whose losses are these two but come with its own model, trainer and
tokenization: it tokenizes text while it trains, so that ids would not be those that were checked and that the
server computes; a quantized base and the inits that are converted would have to be brought into its modules;
and it depends on scikit-learn and SciPy. What remains to write is a page. Files are saved as it reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

Texts = Sequence[Sequence[int]]  # of one row: the anchor's ids, the positive's, those of negatives


def ranking_scores(anchors: Tensor, candidates: Tensor, excluded: Tensor) -> Tensor:
    """Cosines of each anchor and each candidate, -inf where that is no counterexample: float32 [B, C].

    Args:
        anchors: [B, D].
        candidates: [C, D]; candidate i is the positive of anchor i, those beyond B are negatives.
        excluded: bool [B, C], see :func:`excluded_candidates`.
    """
    cosines = functional.normalize(anchors, dim=-1) @ functional.normalize(candidates, dim=-1).T
    return cosines.masked_fill(excluded, -torch.inf)


def ranking_loss(scores: Tensor, temperature: float, *, symmetric: bool) -> Tensor:
    """Cross-entropy of finding the own positive among all candidates (InfoNCE, arXiv:1807.03748).

    Known as multiple negatives ranking (arXiv:1705.00652).

    Args:
        scores: of :func:`ranking_scores`, [B, C].
        temperature: that they are divided by.
        symmetric: the mean of it and of finding the own anchor among all anchors, for each positive.
    """
    logits, own = scores / temperature, torch.arange(len(scores), device=scores.device)
    loss = functional.cross_entropy(logits, own)
    if not symmetric:
        return loss
    return (loss + functional.cross_entropy(logits[:, : len(own)].T, own)) / 2


def cosine_loss(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """The mean squared error of cosines: [B, D] and [B, D] should have ``scores`` [B]."""
    return functional.mse_loss(functional.cosine_similarity(first, second, dim=-1), scores)


def excluded_candidates(rows: Sequence[Texts]) -> Tensor:
    """Where a candidate is no counterexample for a row: bool [B, C], never so for its own positive.

    It is the anchor itself, or a positive of an equal anchor: data sets repeat questions and answers, and to
    push those away would unlearn what other rows teach. The candidates are all positives, then all negatives.
    """
    anchors = [tuple(row[0]) for row in rows]
    positives = [tuple(row[1]) for row in rows]
    candidates = [*positives, *(tuple(text) for row in rows for text in row[2:])]
    known: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for anchor, positive in zip(anchors, positives, strict=True):
        known.setdefault(anchor, {anchor}).add(positive)
    return torch.tensor(
        [
            [index != row and candidate in known[anchor] for index, candidate in enumerate(candidates)]
            for row, anchor in enumerate(anchors)
        ]
    )
