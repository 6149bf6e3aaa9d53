"""A small decoder, and the adapters that steps of chunks of prompts are tested with."""

from __future__ import annotations

import torch

from manylora.server.kernels.cuda.backend import TritonStep
from manylora.server.kernels.cuda.layers.row_mixes import Takes
from manylora.server.kernels.cuda.replay.mix_buffers import MAX_RANK
from tests.support.kernel_cases import VECTORS, Mix, Pages, Shape, in_float32, on, random_decoder

BLOCKS = 40


class ChunkCase:
    """The decoder of one shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.weights = in_float32(random_decoder(shape))
        self.takes = Takes(self.weights)
        pages = Pages(self.weights)
        self.plain = pages.random(5, 1)
        self.ragged = pages.random((0, 18, 3, 0, 1, 0, 4), 2)
        self.gained = pages.random(2, 3, vectors=("g", "gc", "c", "g", "gc", "", "gc"))
        # Input gains of down, which the fused layers take, and of others, which they do not.
        self.scaled = pages.random(2, 4, vectors=("g", "", "c", "", "gc", "", "gci"))
        self.elsewhere = pages.random(4, 5, vectors=VECTORS)
        self.wide = pages.random((MAX_RANK, 0, 0, 0, 0, 0, 0), 6)
        self.mixes: tuple[Mix, ...] = (
            ((self.plain, 1.0),),
            ((self.ragged, 0.5), (self.plain, -0.5)),
            (),
            ((self.gained, -0.7), (self.plain, 2.0)),
        )
        self.pool = pages.pool.float()

    def triton(self, device: torch.device) -> TritonStep:
        """A step of it on a device, its cache empty."""
        return TritonStep(on(device, self.weights), self.pool.to(device), BLOCKS)
