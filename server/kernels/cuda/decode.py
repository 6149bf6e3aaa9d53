"""Decode steps over memory that stays in place, so that they can be captured as CUDA graphs.

A step in which every sequence has one row is filled up to the next of a few sizes, its bucket. What differs
between two steps of a bucket is only what lies in the buffers: launches, shapes and addresses are the same,
and nothing waits for the device. Rows that fill up have no context, no adapter and a slot in block 0, which
is nobody's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from manylora.server.kernels.buffers import sent
from manylora.server.kernels.cuda.attention import PARTITION, DecodeRows
from manylora.server.kernels.cuda.buckets import MAX_ROWS, Bucket, bucket_for, buckets_up_to
from manylora.server.kernels.cuda.graphs import CudaGraphs
from manylora.server.kernels.cuda.mixes import VECTORS, LoraTables, page_tables, total_rank, vector_table
from manylora.server.kernels.cuda.pinned_arrays import Mirror
from manylora.server.kernels.inputs import BLOCK_SIZE, AdapterPages, LoraInputs, StepInputs
from manylora.server.kernels.reference.lora import same_mixes

MAX_RANK = 256  # the largest sum of ranks of a row's mix
_ENTRIES = 4  # members of mixes a row, on average
_LATE = 32  # graphs for rarer variants that are captured while requests run; each holds up the answers once


@dataclass(frozen=True)
class Variant:
    """What the rows of a step need of its graph."""

    adapted: bool
    scaled: bool = False  # some of their adapters have input gains
    embedded: bool = False  # some of their embeddings are given


class Adapters(Protocol):
    """Which adapters a graph computes."""

    def all_of(self, lora: LoraInputs | None) -> bool:
        """Whether all of a step's are such ones."""

    def scaled(self, lora: LoraInputs) -> bool:
        """Whether any of these has input gains."""


class PlainAdapters:
    """Those with rank pages only."""

    @staticmethod
    def all_of(lora: LoraInputs | None) -> bool:
        return lora is None or all(pages.vectors is None for pages in lora.adapters)

    @staticmethod
    def scaled(lora: LoraInputs) -> bool:
        del lora
        return False


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
    return bucket if inputs.lora is None or _fits(inputs.lora, bucket.rows, takes) else None


def _fits(lora: LoraInputs, rows: int, takes: Adapters) -> bool:
    return len(lora.adapter) <= _ENTRIES * rows and total_rank(lora) <= MAX_RANK and takes.all_of(lora)


class DecodeBuffers:
    """The arguments of the steps of one bucket."""

    def __init__(self, bucket: Bucket, modules: int, like: torch.Tensor) -> None:
        """Adapters are of ``modules``, norms included; ``like`` [.., D] is what embeddings are like."""
        rows, entries, device = bucket.rows, _ENTRIES * bucket.rows, like.device
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
        self._vectors = Mirror(dict.fromkeys(VECTORS, ((entries, modules), torch.int32)), device)
        self._last: LoraInputs | None = None
        self._with_vectors = 0  # adapters that the tables of vectors were filled for
        there = self._step.device
        self.token_ids, self.positions = there["token_ids"], there["positions"]
        self.slots = there["slots"]
        every = torch.arange(rows, dtype=torch.int32, device=device)
        self.attention = DecodeRows(every, there["context"], there["blocks"], bucket.partitions)
        self.tables = LoraTables(**self._mixes.device, **self._vectors.device)
        self.sequences = every
        self.work = torch.stack([every, every], dim=1)  # (row, sequence) of :class:`RankPages`
        self.given = like.new_zeros(rows, like.shape[-1])
        self.is_given = torch.zeros(rows, 1, dtype=torch.bool, device=device)

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
        if inputs.embedded is not None:
            rows = sent(inputs.embedded.rows, self.given.device)
            self.given.index_copy_(0, rows, inputs.embedded.values.to(self.given.dtype))
            self.is_given.zero_().index_fill_(0, rows, True)

    def _fill_mixes(self, lora: LoraInputs) -> None:
        self._mixes.wait()
        here, entries, adapters = self._mixes.host, len(lora.adapter), len(lora.adapters)
        here["start"][: len(lora.start)] = lora.start
        here["start"][len(lora.start) :] = entries
        here["adapter"][:entries] = lora.adapter
        here["weight"][:entries] = lora.weight
        here["offset"][:adapters], here["rank"][:adapters] = page_tables(lora.adapters, here["rank"].shape[1])
        self._mixes.send()
        self._fill_vectors(lora.adapters)
        self._last = lora

    def _fill_vectors(self, adapters: tuple[AdapterPages, ...]) -> None:
        """Their tables are sent only where there are any, or were."""
        last = max((i + 1 for i, pages in enumerate(adapters) if pages.vectors is not None), default=0)
        if not last and not self._with_vectors:
            return
        self._vectors.wait()
        for name, table in self._vectors.host.items():
            table[:last] = vector_table(adapters[:last], name, table.shape[1]) if last else 0
            table[last : self._with_vectors] = 0
        self._vectors.send()
        self._with_vectors = last


Forward = Callable[[DecodeBuffers, Variant], tuple[torch.Tensor, torch.Tensor]]


class DecodeSteps:
    """Runs the steps that a bucket holds; on CUDA each bucket becomes a graph the first time."""

    def __init__(
        self,
        forward: Forward,
        modules: int,
        takes: Adapters,
        *,
        logits: torch.Tensor,
        hidden: torch.Tensor,
        graphs: CudaGraphs | None,
    ) -> None:
        """``forward`` makes the logits [N, V] from the buffers, and what the head was applied to [N, D].

        ``logits`` [at least MAX_ROWS, V] and ``hidden`` [MAX_ROWS, D] are where they go. Adapters are of
        ``modules``, norms included. Without ``graphs`` every step is launched anew.
        """
        self._forward = forward
        self._modules = modules
        self._takes = takes
        self._logits = logits
        self._hidden = hidden
        self.graphs = graphs
        self.buffers: dict[Bucket, DecodeBuffers] = {}

    def step(self, inputs: StepInputs) -> torch.Tensor | None:
        """The logits [T, V] of every row, valid until the next step; None if no bucket holds the step."""
        bucket = bucket_of(inputs, self._takes)
        if bucket is None:
            return None
        if bucket not in self.buffers:
            self.buffers[bucket] = DecodeBuffers(bucket, self._modules, self._hidden)
        buffers, lora = self.buffers[bucket], inputs.lora
        scaled = lora is not None and self._takes.scaled(lora)
        variant = Variant(lora is not None, scaled, inputs.embedded is not None)
        buffers.fill(inputs)

        def run() -> None:
            logits, hidden = self._forward(buffers, variant)
            self._logits[: buffers.rows].copy_(logits)
            self._hidden[: buffers.rows].copy_(hidden)

        if self.graphs is None:
            run()
        else:
            self.graphs.run((bucket, variant), run)
        n = len(inputs.token_ids)
        if inputs.hidden is not None:
            inputs.hidden.copy_(self._hidden[:n])
        return self._logits[:n]

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
            self.graphs.seal(_LATE)
