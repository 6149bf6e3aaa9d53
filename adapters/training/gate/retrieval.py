"""How well vectors find what belongs to a text among the held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from manylora.adapters.training.data.cut import Item
from manylora.adapters.training.data.template import EncodedTexts
from manylora.adapters.training.model.embedding import text_vectors
from manylora.adapters.training.session.session import Session
from manylora.adapters.training.trainers.contrast import (
    cosine_loss,
    excluded_candidates,
    ranking_loss,
    ranking_scores,
)

RECALL = 10  # how many of the nearest candidates are looked at
_AT_ONCE = 256  # rows that are compared with all candidates at a time


def embedding_scores(model: Any, items: Sequence[Item], session: Session) -> dict[str, float]:
    """The scores of ``model`` on held-out rows.

    Where positives are to be found: the loss in batches, as while it trained; how often the own positive is
    the nearest, or among the ten nearest, of all positives and negatives. Of scored pairs: the loss, and the
    rank correlation of cosines and scores.
    """
    rows = [item for item in items if isinstance(item, EncodedTexts)]
    texts = list(dict.fromkeys(tuple(text) for row in rows for text in row.texts))
    vectors = text_vectors(model, texts, session.base.pad_id, session.pooling)
    index = {text: number for number, text in enumerate(texts)}
    places = [[index[tuple(text)] for text in row.texts] for row in rows]
    scores = [row.score for row in rows if row.score is not None]
    if scores:
        return _scored(vectors, places, torch.tensor(scores))
    return {"loss": _ranking_loss(vectors, rows, places, session), **_found(vectors, places)}


def _scored(vectors: Tensor, places: Sequence[Sequence[int]], scores: Tensor) -> dict[str, float]:
    first, second = (vectors[[row[side] for row in places]] for side in (0, 1))
    cosines = functional.cosine_similarity(first, second, dim=-1)
    found = {"loss": float(cosine_loss(first, second, scores))}
    both = torch.stack([ranks(cosines), ranks(scores)])
    if bool((both.std(dim=1) > 0).all()):  # else there is no order to compare
        found["rank correlation"] = float(torch.corrcoef(both)[0, 1])
    return found


def ranks(values: Tensor) -> Tensor:
    """The rank of each value [N] from 0 on, float64; equal values share the mean of theirs."""
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    means = counts.double().cumsum(0) - (counts.double() + 1) / 2
    found: Tensor = means[group]
    return found


def _ranking_loss(
    vectors: Tensor, rows: Sequence[EncodedTexts], places: Sequence[Sequence[int]], session: Session
) -> float:
    config, total = session.config, 0.0
    for start in range(0, len(rows), config.batch_size):
        group, some = rows[start : start + config.batch_size], places[start : start + config.batch_size]
        negatives = [place for row in some for place in row[2:]]
        candidates = vectors[[row[1] for row in some] + negatives]
        scores = ranking_scores(
            vectors[[row[0] for row in some]], candidates, excluded_candidates([row.texts for row in group])
        )
        loss = ranking_loss(scores, config.embed_temperature, symmetric=config.embed_symmetric)
        total += float(loss) * len(group)
    return total / len(rows)


def _found(vectors: Tensor, places: Sequence[Sequence[int]]) -> dict[str, float]:
    """Shares of rows whose positive is the nearest candidate, or among the nearest."""
    known: dict[int, set[int]] = {}
    for anchor, positive, *_ in places:
        known.setdefault(anchor, {anchor}).add(positive)
    candidates = sorted({place for row in places for place in row[1:]})
    column = {place: number for number, place in enumerate(candidates)}
    unit = functional.normalize(vectors, dim=-1)
    nearer: list[int] = []  # of each row, candidates that are nearer than its own
    for start in range(0, len(places), _AT_ONCE):
        group = places[start : start + _AT_ONCE]
        cosines = unit[[row[0] for row in group]] @ unit[candidates].T
        for row, line in zip(group, cosines, strict=True):
            own = line[column[row[1]]].clone()
            line[[column[place] for place in known[row[0]] if place in column]] = -torch.inf
            nearer.append(int((line >= own).sum()))
    found = {"accuracy@1": sum(count == 0 for count in nearer) / len(nearer)}
    if len(candidates) > RECALL:
        found[f"recall@{RECALL}"] = sum(count < RECALL for count in nearer) / len(nearer)
    return found
