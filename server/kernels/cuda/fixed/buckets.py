"""The sizes of the steps that are captured where rows that decode go the way of prompts, too."""

from __future__ import annotations

from dataclasses import dataclass

from manylora.server.kernels.cuda.replay.buckets import MAX_BLOCKS, MAX_ROWS
from manylora.server.kernels.cuda.replay.chunks import blocks_of
from manylora.server.kernels.cuda.replay.mix_buffers import Adapters, fits
from manylora.server.kernels.inputs import StepInputs

_ROWS = (8, 16, 32, 64, 128, 256, 384, 512)
_CONTEXT = 512  # blocks of a sequence's context, on average


@dataclass(frozen=True)
class FixedBucket:
    """The sizes for which one graph stands."""

    rows: int

    @property
    def sequences(self) -> int:
        """How many it holds at most, and rows whose logits are wanted: a row may be alone."""
        return min(self.rows, MAX_ROWS)

    @property
    def blocks(self) -> int:
        """That the contexts of its sequences take together, at most."""
        return max(MAX_BLOCKS, _CONTEXT * self.sequences)


def fixed_bucket_for(rows: int, sequences: int) -> FixedBucket | None:
    """The smallest bucket for ``rows`` of so many ``sequences``; None if none holds them."""
    found = next((FixedBucket(n) for n in _ROWS if n >= rows), None)
    return None if found is None or sequences > found.sequences else found


def fixed_bucket_of(inputs: StepInputs, takes: Adapters) -> FixedBucket | None:
    """The bucket that holds a step; None if none does."""
    if inputs.cached or inputs.merged is not None:
        return None
    bucket = fixed_bucket_for(len(inputs.token_ids), max(len(inputs.context), len(inputs.logits_rows)))
    if bucket is None or blocks_of(inputs).sum() > bucket.blocks:
        return None
    return bucket if fits(inputs.lora, bucket.sequences, takes) else None


def decode_sizes(sequences: int) -> list[int]:
    """For every bucket that steps of up to so many ``sequences`` with a row each need, rows of such a step.

    The largest comes first: graphs share the memory that they compute in.
    """
    most = min(sequences, MAX_ROWS)
    return [min(n, most) for n in reversed(_ROWS) if _below(n) < most]


def further_counts(rows: int, sequences: int, context: int) -> list[list[int]]:
    """How many rows each sequence has in a step of every further bucket, the largest first.

    Steps have up to ``rows`` of up to ``sequences``, and a sequence has up to ``context`` tokens.
    """
    found, most = [], min(sequences, MAX_ROWS)
    for n in reversed(_ROWS):
        size = min(n, rows, most * context)
        if most <= _below(n) < size:
            count = -(-size // context)
            least, more = divmod(size, count)
            found.append([least + 1] * more + [least] * (count - more))
    return found


def _below(rows: int) -> int:
    """The rows of the next smaller bucket; 0: there is none."""
    return max((n for n in _ROWS if n < rows), default=0)
