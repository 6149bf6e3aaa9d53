"""Texts to vectors: how a run pools hidden states, and doing it outside of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from manylora.adapters.format.pooling import Pooling, PoolingConfig, read_pooling
from manylora.adapters.training.config import TrainConfig
from manylora.adapters.training.model.forward import BATCH, pad_right


def pooling_of(config: TrainConfig, base: Path, init_adapter: Path | None) -> PoolingConfig:
    """What the options say; where they say auto, what the adapter that is gone on from does, else the base.

    ``base`` and ``init_adapter`` are directories.
    """
    known = read_pooling(base if init_adapter is None else init_adapter)
    pooling = known.pooling if config.embed_pooling == "auto" else Pooling(config.embed_pooling.upper())
    normalize = known.normalize if config.embed_vectors == "auto" else config.embed_vectors == "unit"
    return PoolingConfig(pooling, normalize)


def pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector for each text, as the server pools.

    Args:
        states: [texts, tokens, D], padded on the right.
        mask: [texts, tokens], 1 where there is a token; every text has one.
        pooling: what of the states is taken.

    Returns:
        float32 [texts, D].
    """
    states, lengths = states.float(), mask.sum(1)
    if pooling == Pooling.LAST:
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    return (states * mask[..., None]).sum(1) / lengths[:, None]


@torch.no_grad()
def text_vectors(model: Any, texts: Sequence[Sequence[int]], pad_id: int, pooling: PoolingConfig) -> Tensor:
    """The vectors that the server gives for ``texts``, which are token ids: float32 [texts, D] on the CPU."""
    device = next(model.parameters()).device
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little to pad in a batch
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), BATCH):
        group = order[start : start + BATCH]
        ids, mask = (part.to(device) for part in pad_right([list(texts[index]) for index in group], pad_id))
        states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        found |= dict(zip(group, pooled(states, mask, pooling.pooling).cpu(), strict=True))
    vectors = torch.stack([found[index] for index in range(len(texts))])
    return functional.normalize(vectors, dim=-1) if pooling.normalize else vectors
