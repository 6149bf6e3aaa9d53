"""What a step takes beside the weights and the caches, from its sizes: nothing is run for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from manylora.server.sizing.shape import BaseShape

_PARTITION = 128  # tokens of a context that one program attends to; there are no more than
_MOST_PARTITIONS = 32  # of a row, and they are larger in longer contexts
_GROWTH = 4  # of a context at most, where decode steps are replayed
_CHUNK_ROWS = 512  # of the largest step of chunks that is replayed
_BUCKETS = 3  # times those rows, or more than that: the rows of all sizes of such steps
_REPLAYED_RANK = 256  # the largest sum of ranks that replayed steps have room for
_TILED_ROWS = 3  # times those rows: the most that tiles of mixes have
_FIXED_ROWS = 9  # times those rows, where rows that decode are tiles of their own
_TILE_ROWS = 16  # of a mix, filled up
_TILE_SLICE = 1024  # input features that a tile sums up at once
STAGING_BYTES = 16 << 20  # through which adapters are sent
_LIBRARIES = 256 << 20  # workspaces of matrix products, of this library and its own threads' handles
_SLACK = 1.15  # of what the allocator holds to what is in use
_SAMPLING = 28  # bytes a logit while tokens are drawn: float copy, sorted values and places, two sums
_FIXED_SAMPLING = 80  # the same of rows drawn in whole numbers: keys, weights, their order and sums
_FIXED_TOGETHER = 32  # such rows at a time


@dataclass(frozen=True)
class StepSize:
    """How large steps may be."""

    rows: int  # tokens
    sequences: int  # of which tokens are drawn
    context: int  # the longest
    rank: int = 64  # the largest sum of ranks of a row's mix
    deterministic: bool = False  # rows that decode go the way of prompts


def step_bytes(shape: BaseShape, itemsize: int, size: StepSize) -> int:
    """The most that is in use at a time while one step runs, kernels' scratch included."""
    layer = _layer_bytes(shape, itemsize, size.rows, size.rank)
    return max(layer, _head_bytes(shape, itemsize, size)) + scratch_bytes(shape, size)


def scratch_bytes(shape: BaseShape, size: StepSize) -> int:
    """What the attention of decode rows takes while it runs, once for all layers."""
    partitions = min(-(-size.context // _PARTITION), _MOST_PARTITIONS)
    return size.sequences * shape.heads * partitions * (shape.head_dim + 2) * 4


def replayed_scratch_bytes(shape: BaseShape, size: StepSize) -> int:
    """The most that it takes in steps that are replayed, whose contexts are rounded up."""
    return scratch_bytes(shape, replace(size, context=_GROWTH * size.context))


def chunk_bytes(shape: BaseShape, itemsize: int, size: StepSize) -> int:
    """What replayed steps of chunks of prompts take: while they run, and their buffers."""
    rows = min(size.rows, _CHUNK_ROWS)
    widest = max(3 * shape.width, shape.heads * shape.head_dim, shape.inner)  # three modules share an input
    tiled = (_FIXED_ROWS if size.deterministic else _TILED_ROWS) * rows
    partial = tiled * _REPLAYED_RANK * 4 * -(-widest // _TILE_SLICE)
    given = _BUCKETS * rows * shape.width * itemsize  # embeddings
    return _layer_bytes(shape, itemsize, rows, 0) + partial + given


def reserved_bytes(shape: BaseShape, itemsize: int, size: StepSize) -> int:
    """What has to stay free for steps: those that are launched, those that are replayed, and libraries."""
    replayed = _layer_bytes(shape, itemsize, size.sequences, size.rank) + replayed_scratch_bytes(shape, size)
    # The graphs' own, where they are returned, and where they are joined with those of prompts.
    logits = 3 * size.sequences * shape.vocabulary * itemsize
    launched = step_bytes(shape, itemsize, size) + _tiles_bytes(shape, size)
    # They compute in the memory of the same graphs, but not in pieces of the same sizes.
    replayed += chunk_bytes(shape, itemsize, size)
    return int((launched + replayed + logits) * _SLACK) + _LIBRARIES + STAGING_BYTES


def _tiles_bytes(shape: BaseShape, size: StepSize) -> int:
    """What launched steps take beyond the rest where rows that decode are tiles of their own."""
    if not size.deterministic:
        return 0
    widest = max(3 * shape.width, shape.heads * shape.head_dim, shape.inner)
    lines = size.rows + _TILE_ROWS * size.sequences
    return lines * size.rank * 4 * -(-widest // _TILE_SLICE)


def _layer_bytes(shape: BaseShape, itemsize: int, rows: int, rank: int) -> int:
    """The most of a layer's parts: norm, attention, MLP; each beside its input and the residual stream."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norm = shape.width * (2 * itemsize + 3 * 4)
    attention = (q + 2 * kv) * itemsize + 4 * q * itemsize + 2 * kv * itemsize
    mlp = 4 * shape.inner * itemsize
    widest = max(shape.width, q, shape.inner)
    lora = 4 * rank * -(-widest // 512)  # partial sums of A x, slice by slice
    ropes = shape.head_dim * (4 + itemsize)
    return rows * (5 * shape.width * itemsize + max(norm, attention + lora, mlp + lora) + ropes)


def _head_bytes(shape: BaseShape, itemsize: int, size: StepSize) -> int:
    """The head's part: what goes in of all rows, and logits of the sequences while tokens are drawn."""
    drawing = size.sequences * _SAMPLING
    if size.deterministic:
        drawing = size.sequences * 4 + min(size.sequences, _FIXED_TOGETHER) * _FIXED_SAMPLING
    logits = shape.vocabulary * (size.sequences * itemsize + drawing)
    return size.rows * shape.width * 2 * itemsize + logits


def probe_bytes(shape: BaseShape) -> int:
    """What the comparison with the original model takes: its output head once more, in float32."""
    return shape.vocabulary * shape.width * 4
