"""Decode steps over memory that stays in place, so that they can be captured as CUDA graphs.

A step in which every sequence has one row is filled up to the next of a few sizes, its bucket. What differs
between two steps of a bucket is only what lies in the buffers: launches, shapes and addresses are the same,
and nothing waits for the device. Rows that fill up have no context, no adapter and a slot in block 0, which
is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from manylora.server.kernels.cuda.attention import PARTITION, DecodeRows
from manylora.server.kernels.cuda.buckets import MAX_ROWS, Bucket, bucket_for, buckets_up_to
from manylora.server.kernels.cuda.graphs import CudaGraphs
from manylora.server.kernels.cuda.lora import LoraTables, page_tables, total_rank
from manylora.server.kernels.cuda.pinned_arrays import Mirror
from manylora.server.kernels.inputs import BLOCK_SIZE, LoraInputs, StepInputs
from manylora.server.kernels.reference.lora import same_mixes

MAX_RANK = 256  # the largest sum of ranks of a row's mix
_ENTRIES = 4  # members of mixes a row, on average


def bucket_of(inputs: StepInputs) -> Bucket | None:
    """The bucket that holds a step; None where no bucket does."""
    n = len(inputs.token_ids)
    replayable = (
        n == len(inputs.context) <= MAX_ROWS
        and np.array_equal(inputs.logits_rows, np.arange(n))
        and inputs.embedded is None
        and inputs.hidden is None
        and not inputs.cached
        and inputs.merged is None
    )
    if not replayable:
        return None
    bucket = bucket_for(n, int(inputs.context.max()))
    return bucket if inputs.lora is None or _fits(inputs.lora, bucket.rows) else None


def _fits(lora: LoraInputs, rows: int) -> bool:
    return (
        len(lora.adapter) <= _ENTRIES * rows
        and total_rank(lora) <= MAX_RANK
        and all(pages.vectors is None for pages in lora.adapters)
    )


class DecodeBuffers:
    """The arguments of the steps of one bucket."""

    def __init__(self, bucket: Bucket, modules: int, device: torch.device) -> None:
        rows, entries = bucket.rows, _ENTRIES * bucket.rows
        self.rows = rows
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
        self._mixes = Mirror(
            {
                "start": ((rows + 1,), torch.int32),
                "adapter": ((entries,), torch.int32),
                "weight": ((entries,), torch.float32),
                "offset": ((entries, modules), torch.int64),
                "rank": ((entries, modules), torch.int32),
            },
            device,
        )
        self._last: LoraInputs | None = None
        there = self._step.device
        self.token_ids, self.positions = there["token_ids"], there["positions"]
        self.slots = there["slots"]
        every = torch.arange(rows, dtype=torch.int32, device=device)
        self.attention = DecodeRows(every, there["context"], there["blocks"], bucket.partitions)
        self.tables = LoraTables(**self._mixes.device)
        self.work = torch.stack([every, every], dim=1)  # (row, sequence) of :class:`RankPages`

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
        if inputs.lora is not None and (self._last is None or not same_mixes(self._last, inputs.lora)):
            self._fill_mixes(inputs.lora)

    def _fill_mixes(self, lora: LoraInputs) -> None:
        self._mixes.wait()
        here, entries, adapters = self._mixes.host, len(lora.adapter), len(lora.adapters)
        here["start"][: len(lora.start)] = lora.start
        here["start"][len(lora.start) :] = entries
        here["adapter"][:entries] = lora.adapter
        here["weight"][:entries] = lora.weight
        here["offset"][:adapters], here["rank"][:adapters] = page_tables(lora.adapters, here["rank"].shape[1])
        self._mixes.send()
        self._last = lora


class DecodeSteps:
    """Runs the steps that a bucket holds; on CUDA each bucket becomes a graph the first time."""

    def __init__(
        self,
        forward: Callable[[DecodeBuffers, bool], torch.Tensor],
        modules: int,
        logits: torch.Tensor,
        graphs: CudaGraphs | None,
    ) -> None:
        """``forward`` makes the logits [N, V] from the buffers, with adapters or without.

        ``logits`` [at least MAX_ROWS, V] is where they are returned. Without ``graphs`` every step is
        launched anew.
        """
        self._forward = forward
        self._modules = modules
        self._logits = logits
        self.graphs = graphs
        self.buffers: dict[Bucket, DecodeBuffers] = {}

    def step(self, inputs: StepInputs) -> torch.Tensor | None:
        """The logits [T, V] of every row, valid until the next step; None if no bucket holds the step."""
        bucket = bucket_of(inputs)
        if bucket is None:
            return None
        if bucket not in self.buffers:
            self.buffers[bucket] = DecodeBuffers(bucket, self._modules, self._logits.device)
        buffers, adapted = self.buffers[bucket], inputs.lora is not None
        buffers.fill(inputs)

        def run() -> None:
            self._logits[: buffers.rows].copy_(self._forward(buffers, adapted))

        if self.graphs is None:
            run()
        else:
            self.graphs.run((bucket, adapted), run)
        return self._logits[: len(inputs.token_ids)]

    @property
    def num_failed(self) -> int:
        """See :class:`Capturing`."""
        return 0 if self.graphs is None else self.graphs.num_failed

    def sizes(self, rows: int, context: int) -> list[tuple[int, int]]:
        """See :class:`Capturing`."""
        return [(b.rows, min(b.partitions * PARTITION, context)) for b in buckets_up_to(rows, context)]

    def restart(self) -> None:
        """See :class:`Capturing`."""
        if self.graphs is not None:
            self.graphs.restart()

    def seal(self) -> None:
        """See :class:`Capturing`."""
        if self.graphs is not None:
            self.graphs.seal()
