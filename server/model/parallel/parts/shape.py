"""The sizes of one rank's part of a base, by the config alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from manylora.server.model.parallel.parts.sharding import Sharding
from manylora.server.sizing.shape import BaseShape


def share_shape(config: Any, count: int) -> BaseShape:
    """The shape of what rank 0 of ``count`` has, whose part is the largest; see :func:`unsupported`.

    The vocabulary is all of it: logits are joined, and embeddings are on every rank.
    """
    sharding = Sharding.of(config, 0, count)
    own = sharding.config(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(own)
    shape = BaseShape.of(own, model)
    if own.tie_word_embeddings:
        return shape
    elsewhere = sharding.vocabulary - len(sharding.tokens)
    return replace(shape, parameters=shape.parameters - elsewhere * shape.width)
