"""Steps over memory that stays in place, so that they can be captured as CUDA graphs.

A step is filled up to the next of a few sizes, its bucket. What differs between two steps of a bucket is only
what lies in the buffers: launches, shapes and addresses are the same, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from manylora.server.kernels.cuda.attention import DecodeRows
from manylora.server.kernels.cuda.replay.graphs import CudaGraphs
from manylora.server.kernels.cuda.replay.mix_buffers import Adapters, GivenRows, MixBuffers
from manylora.server.kernels.inputs import StepInputs
from manylora.server.kernels.reference.attention import AttentionPlan


@dataclass(frozen=True)
class Variant:
    """What the rows of a step need of its graph."""

    adapted: bool
    scaled: bool = False  # some of their adapters have input gains
    embedded: bool = False  # some of their embeddings are given


class StepBuffers(Protocol):
    """The arguments of the steps of one bucket, of T rows that make R logits."""

    num_logits: int  # R
    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    slots: torch.Tensor  # [T] int64
    sequences: torch.Tensor  # [T] int32: the sequence of each row, -1 or one without a mix for padding
    logits_rows: torch.Tensor | None  # [R] int64; None: all rows, in order
    groups: torch.Tensor | None  # [T, 3] int32 of rows whose mixes run inside other kernels
    tiles: torch.Tensor | None  # [n, 3] int32 as :class:`TiledPages` takes them; None: mixes run in groups
    mixes: MixBuffers
    given: GivenRows

    @property
    def attention(self) -> DecodeRows | AttentionPlan:
        """That of all rows."""

    def fill(self, inputs: StepInputs) -> None:
        """Send a step that this bucket holds."""


Bucket_ = TypeVar("Bucket_", bound=Hashable)
Buffers_ = TypeVar("Buffers_", bound=StepBuffers)


class ReplayedSteps(Generic[Bucket_, Buffers_]):
    """Runs the steps that a bucket holds; on CUDA each bucket becomes a graph the first time."""

    def __init__(
        self,
        bucket_of: Callable[[StepInputs], Bucket_ | None],
        new_buffers: Callable[[Bucket_], Buffers_],
        forward: Callable[[Buffers_, Variant], tuple[torch.Tensor, torch.Tensor]],
        takes: Adapters,
        *,
        logits: torch.Tensor,
        hidden: torch.Tensor,
        graphs: CudaGraphs | None,
    ) -> None:
        """``forward`` makes the logits [R, V] from the buffers, and what the head was applied to [R, D].

        ``logits`` [at least R, V] and ``hidden`` [at least R, D] are where they go. Without ``graphs`` every
        step is launched anew.
        """
        self._bucket_of = bucket_of
        self._new_buffers = new_buffers
        self._forward = forward
        self._takes = takes
        self._logits = logits
        self._hidden = hidden
        self.graphs = graphs
        self.buffers: dict[Bucket_, Buffers_] = {}

    def step(self, inputs: StepInputs) -> torch.Tensor | None:
        """The logits [R, V] that are wanted, valid until the next step; None if no bucket holds the step."""
        bucket = self._bucket_of(inputs)
        if bucket is None:
            return None
        if bucket not in self.buffers:
            self.buffers[bucket] = self._new_buffers(bucket)
        buffers, lora = self.buffers[bucket], inputs.lora
        scaled = lora is not None and self._takes.scaled(lora)
        variant = Variant(lora is not None, scaled, inputs.embedded is not None)
        buffers.fill(inputs)

        def run() -> None:
            logits, hidden = self._forward(buffers, variant)
            self._logits[: buffers.num_logits].copy_(logits)
            self._hidden[: buffers.num_logits].copy_(hidden)

        if self.graphs is None:
            run()
        else:
            self.graphs.run((bucket, variant), run)
        n = len(inputs.logits_rows)
        if inputs.hidden is not None:
            inputs.hidden.copy_(self._hidden[:n])
        return self._logits[:n]
