"""The sizes of decode steps that are captured: few, so that all of them are before the first request."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from manylora.server.kernels.cuda.attention import PARTITION

MAX_ROWS = 256  # of a bucket; larger steps are long enough to hide their launches
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, MAX_ROWS)
_GROWTH = 4  # of the context from one bucket to the next


@dataclass(frozen=True)
class Bucket:
    """The sizes for which one graph stands."""

    rows: int
    partitions: int  # of the longest context


def bucket_for(rows: int, context: int) -> Bucket:
    """The smallest bucket for at most :data:`MAX_ROWS` ``rows``, of which none sees more than ``context``."""
    partitions = 1
    while partitions * PARTITION < context:
        partitions *= _GROWTH
    return Bucket(_ROWS[bisect_left(_ROWS, rows)], partitions)


def buckets_up_to(rows: int, context: int) -> list[Bucket]:
    """Every bucket that steps of so many rows and contexts may need, the largest first.

    Graphs share the memory that they compute in: the first takes all of it, and the others nothing.
    """
    last = bucket_for(min(rows, MAX_ROWS), context)
    partitions = [1]
    while partitions[-1] < last.partitions:
        partitions.append(partitions[-1] * _GROWTH)
    sizes = [n for n in _ROWS if n <= last.rows]
    return [Bucket(n, p) for p in reversed(partitions) for n in reversed(sizes)]


MAX_BLOCKS = 16_384  # that the contexts of the sequences of chunks take together
MAX_CHUNK_ROWS = 512  # of a bucket of chunks; larger steps are long enough to hide their launches
_CHUNK_ROWS = (16, 32, 64, 128, 256, 384, MAX_CHUNK_ROWS)
_LEAST_SEQUENCES = 8


@dataclass(frozen=True)
class ChunkBucket:
    """The sizes for which one graph of chunks of prompts stands."""

    rows: int
    blocks = MAX_BLOCKS

    @property
    def sequences(self) -> int:
        """How many it holds at most, and rows whose logits are wanted."""
        return max(_LEAST_SEQUENCES, self.rows // 8)


def chunk_bucket_for(rows: int, sequences: int) -> ChunkBucket | None:
    """The smallest bucket for ``rows`` of so many ``sequences``; None if none holds them."""
    holding = (ChunkBucket(n) for n in _CHUNK_ROWS if n >= rows)
    return next((bucket for bucket in holding if bucket.sequences >= sequences), None)


def chunk_counts(rows: int, sequences: int, context: int) -> list[list[int]]:
    """For every bucket of chunks that steps may need how many rows the sequences of a step of it have.

    Steps have up to ``rows`` of chunks of up to ``sequences``, and a sequence up to ``context`` tokens. The
    largest comes first.
    """
    found: list[list[int]] = []
    smaller = [0, *(ChunkBucket(n).sequences for n in _CHUNK_ROWS)]
    for bucket, many in reversed([*zip(map(ChunkBucket, _CHUNK_ROWS), smaller, strict=False)]):
        size = min(rows, bucket.rows, sequences * context)
        count = -(-size // context)
        if chunk_bucket_for(size, count) != bucket:
            count = max(count, many + 1)  # more sequences than the smaller ones hold
        if count <= sequences and 2 * count <= size and chunk_bucket_for(size, count) == bucket:
            least, more = divmod(size, count)
            found.append([least + 1] * more + [least] * (count - more))
    return found
