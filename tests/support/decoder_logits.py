"""The logits of a decoder that is stepped by hand."""

from __future__ import annotations

import numpy as np
import torch

from manylora.server.model.decoders.fused import FusedDecoder
from tests.support.kernel_cases import Batcher, Sequence_

BLOCKS = 40


def logits_of(decoder: FusedDecoder, tokens: list[int], cuts: list[int]) -> torch.Tensor:
    """Logits of every token, computed in chunks of ``cuts``; blocks are scattered over the cache."""
    blocks = [int(b) for b in np.random.default_rng(0).permutation(BLOCKS - 1)[: -(-len(tokens) // 16)] + 1]
    sequence = Sequence_(tokens, blocks)
    steps = [Batcher.step([(sequence, count)], all_logits=True) for count in cuts]
    return torch.cat([decoder.step(step).float().clone() for step in steps])
