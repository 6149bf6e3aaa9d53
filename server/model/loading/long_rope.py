"""Models that have two sets of rotary factors, for short texts and for long ones ("longrope").

The original picks a set by the longest row of a batch, so a request's answer would depend on who shares the
batch, and what its cache holds would change meaning as it grows. Here one set serves every request: that for
short texts, unless the context is longer than they are; then that for long ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

logger = logging.getLogger(__name__)

LONG_ROPE = "longrope"
_SETTLED = "default"  # a type whose factors the module leaves as they are


def original_length(text: Any, rope: Mapping[str, Any]) -> int | None:
    """The tokens that the factors for short texts are for; None if the config does not say."""
    stated: int | None = rope.get("original_max_position_embeddings") or getattr(
        text, "original_max_position_embeddings", None
    )
    return stated


def settle_factors(model: Any, max_len: int) -> None:
    """Have ``model`` turn every position by the same factors, in contexts of up to ``max_len`` tokens."""
    for rotary in model.modules():
        stated = getattr(rotary, "rope_type", None)
        if stated == LONG_ROPE:
            _settle(rotary, rotary.config.rope_parameters, max_len, {})
            rotary.rope_type = _SETTLED
        elif isinstance(stated, dict):  # one for each type of layer
            for kind in [kind for kind, name in stated.items() if name == LONG_ROPE]:
                _settle(rotary, rotary.config.rope_parameters[kind], max_len, {"layer_type": kind})
                stated[kind] = _SETTLED


def _settle(rotary: Any, rope: Mapping[str, Any], max_len: int, kind: Mapping[str, str]) -> None:
    """Have the module pick a set, by the length of what it sees."""
    original = rope["original_max_position_embeddings"]
    last = original if max_len > original else original - 1
    with torch.no_grad():
        rotary(torch.zeros(1), torch.tensor([[last]]), **kind)
    if max_len > original:
        logger.info("rotary factors for long texts: the context exceeds %d tokens", original)
