"""Decode steps over memory that stays in place; see ``replayed.py``.

Every sequence has one row. Rows that fill up have no context, no adapter and a slot in block 0, which is
nobody's.
"""

from __future__ import annotations

import numpy as np
import torch

from manylora.server.kernels.cuda.attention import PARTITION, DecodeRows
from manylora.server.kernels.cuda.lora import groups_of
from manylora.server.kernels.cuda.replay.buckets import MAX_ROWS, Bucket, bucket_for
from manylora.server.kernels.cuda.replay.mix_buffers import Adapters, GivenRows, MixBuffers, fits
from manylora.server.kernels.cuda.replay.pinned_arrays import Mirror
from manylora.server.kernels.inputs import BLOCK_SIZE, StepInputs


def bucket_of(inputs: StepInputs, takes: Adapters) -> Bucket | None:
    """The bucket that holds a step of adapters that are taken; None where no bucket does."""
    n = len(inputs.token_ids)
    replayable = (
        n == len(inputs.context) <= MAX_ROWS
        and np.array_equal(inputs.logits_rows, np.arange(n))
        and not inputs.cached
        and inputs.merged is None
    )
    if not replayable:
        return None
    bucket = bucket_for(n, int(inputs.context.max()))
    return bucket if fits(inputs.lora, bucket.rows, takes) else None


class DecodeBuffers:
    """The arguments of the steps of one bucket."""

    logits_rows: torch.Tensor | None = None
    tiles: torch.Tensor | None = None

    def __init__(self, bucket: Bucket, modules: int, like: torch.Tensor) -> None:
        """Adapters are of ``modules``, norms included; ``like`` [.., D] is what embeddings are like."""
        rows, device = bucket.rows, like.device
        self.num_logits = rows
        width = bucket.partitions * PARTITION // BLOCK_SIZE
        self._step = Mirror(
            {
                "token_ids": ((rows,), torch.int64),
                "positions": ((rows,), torch.int64),
                "slots": ((rows,), torch.int64),
                "context": ((rows,), torch.int32),
                "blocks": ((rows, width), torch.int32),
            },
            device,
        )
        there = self._step.device
        self.token_ids, self.positions = there["token_ids"], there["positions"]
        self.slots = there["slots"]
        every = torch.arange(rows, dtype=torch.int32, device=device)
        self.attention = DecodeRows(every, there["context"], there["blocks"], bucket.partitions)
        self.sequences = every
        self.mixes = MixBuffers(rows, modules, device)
        self._groups = Mirror({"groups": ((rows, 3), torch.int32)}, device)
        self.groups: torch.Tensor | None = self._groups.device["groups"]
        self.given = GivenRows(rows, like)

    def fill(self, inputs: StepInputs) -> None:
        """Send a step that :func:`bucket_of` has put into this bucket."""
        n, here = len(inputs.token_ids), self._step.host
        self._step.wait()
        for name in ("token_ids", "positions", "slots", "context"):
            here[name][:n] = getattr(inputs, name)
            here[name][n:] = 0
        width = min(inputs.block_tables.shape[1], here["blocks"].shape[1])
        here["blocks"][:n, :width] = inputs.block_tables[:, :width]
        self._step.send()
        if inputs.lora is not None and self.mixes.fill(inputs.lora):
            self._groups.wait()
            groups = self._groups.host["groups"]
            groups[:] = groups_of(inputs.lora, len(groups))
            self._groups.send()
        self.given.fill(inputs.embedded)
