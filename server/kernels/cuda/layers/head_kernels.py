"""Triton kernels around attention, a program for each row, or group of a mix, and head.

Before it, the adapters' B is added to queries, keys and values, heads are normalized and turned by their
positions, and keys and values go to their slots. Behind it, the partitions of a decode row are joined, and
the A of the output projection is multiplied.
"""

import triton
import triton.language as tl

from manylora.server.kernels.cuda.attention_kernels import joined
from manylora.server.kernels.cuda.layers.mix_kernels import (
    column,
    group_of,
    has_pages,
    page_delta,
    rounded,
    shrink_tile,
    vector_delta,
    with_column,
)
from manylora.server.kernels.cuda.lora_kernels import GROUP_ROWS


@triton.jit
def normalized(
    value,
    d,
    inside,
    q_norm,  # [HEAD_DIM]
    k_norm,
    kind,  # 0: a query, 1: a key
    eps,
    pool,
    sequence,
    start,
    adapter,
    weight,
    gain,
    constant,
    modules,
    norm_module,  # of the queries; that of the keys follows
    HEAD_DIM: tl.constexpr,
    MIXES: tl.constexpr,
    TYPE: tl.constexpr,
):
    """The head [tile] float32 after its own norm."""
    spread = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / HEAD_DIM + eps)
    normal = rounded(value * spread, q_norm.dtype.element_ty)
    of_query = tl.load(q_norm + d, mask=inside, other=0.0).to(tl.float32)
    of_key = tl.load(k_norm + d, mask=inside, other=0.0).to(tl.float32)
    result = tl.where(kind == 0, of_query, of_key) * normal
    if MIXES:
        result += vector_delta(
            normal,
            d,
            inside,
            pool,
            sequence,
            start,
            adapter,
            weight,
            gain,
            constant,
            modules,
            norm_module + kind,
        )
    return rounded(result, TYPE)


@triton.jit
def turned(value, d, inside, cos, sin, position, HALF: tl.constexpr, TYPE: tl.constexpr):
    """The head [tile] float32, halves of its first 2 HALF dimensions turned against each other."""
    other = tl.gather(value, tl.where(d < HALF, d + HALF, tl.where(d < 2 * HALF, d - HALF, d)), 0)
    angle = position * HALF + d % HALF
    turning = inside & (d < 2 * HALF)
    c = rounded(tl.load(cos + angle, mask=turning, other=1.0), TYPE)
    s = rounded(tl.load(sin + angle, mask=turning, other=0.0), TYPE)
    return value * c + tl.where(d < HALF, -other, other) * s


@triton.jit(do_not_specialize=["module", "norm_module", "capacity", "slices", "eps"])
def write_heads(
    qkv,  # [T, (heads + 2 kv heads) * HEAD_DIM], rows qkv_stride apart
    qkv_stride,
    positions,  # [T]
    slots,  # [T]
    cos,  # [positions, HALF] float32
    sin,
    q_norm,  # [HEAD_DIM]
    k_norm,
    eps,
    query,  # [T, heads, HEAD_DIM]
    keys,  # [slots, kv heads, HEAD_DIM]
    values,
    heads,
    kv_heads,
    pool,
    a_page,
    q_page,  # of B
    kv_page,
    sequences,
    groups,  # [T, 3] with PAGES
    start,
    adapter,
    weight,
    offset,
    rank,
    gain,
    constant,
    modules,
    module,  # of the queries; those of keys and values follow
    norm_module,
    partial,  # [slices, T, parts, capacity] float32
    capacity,
    slices,
    HEAD_DIM: tl.constexpr,
    HEAD_TILE: tl.constexpr,
    HALF: tl.constexpr,  # 0: positions turn nothing
    NORMS: tl.constexpr,
    STACKED: tl.constexpr,  # queries, keys and values are one module
    RANKS: tl.constexpr,
    MIXES: tl.constexpr,  # adapters may change the norms
    PAGES: tl.constexpr,  # the B of the mixes is multiplied here
    DOT: tl.constexpr,
):
    """One program for each row, with PAGES for each group, and head of queries, keys and values."""
    item, head = tl.program_id(0), tl.program_id(1)
    TYPE: tl.constexpr = qkv.dtype.element_ty
    kind = tl.where(head < heads, 0, tl.where(head < heads + kv_heads, 1, 2))
    of_kind = tl.where(kind == 0, head, tl.where(kind == 1, head - heads, head - heads - kv_heads))
    d = tl.arange(0, HEAD_TILE)
    inside = d < HEAD_DIM
    first_row, last_row, sequence = group_of(item, groups, sequences, MIXES, PAGES)
    PARTS: tl.constexpr = 1 if STACKED else 3
    which = kind
    first = of_kind * HEAD_DIM
    b_page = tl.where(kind == 0, q_page, kv_page)
    if STACKED:
        which = kind * 0
        first = head * HEAD_DIM
        b_page = kind * 0 + q_page
    delta = tl.zeros([HEAD_TILE, GROUP_ROWS], tl.float32)
    if PAGES:
        lines = first_row + tl.arange(0, GROUP_ROWS)
        delta = page_delta(
            first + d, inside, last_row - first_row,
            partial + (lines * PARTS + which).to(tl.int64) * capacity,
            tl.num_programs(0).to(tl.int64) * PARTS * capacity, slices, pool, a_page, b_page, sequence,
            start, adapter, weight, offset, rank, modules, module + which, RANKS, DOT,
        )  # fmt: skip
    for row in range(first_row, last_row):
        at = tl.cast(row, tl.int64)
        value = tl.load(qkv + at * qkv_stride + head * HEAD_DIM + d, mask=inside, other=0.0).to(tl.float32)
        if PAGES:
            own = vector_delta(
                value, first + d, inside, pool, sequence, start, adapter, weight, gain, constant, modules,
                module + which,
            )  # fmt: skip
            value = rounded(value + (own + column(delta, row - first_row)), TYPE)
        if kind < 2:
            if NORMS:
                value = normalized(
                    value, d, inside, q_norm, k_norm, kind, eps, pool,
                    sequence, start, adapter, weight, gain, constant, modules,
                    norm_module, HEAD_DIM, MIXES, TYPE,
                )  # fmt: skip
            if HALF > 0:
                value = turned(value, d, inside, cos, sin, tl.load(positions + row), HALF, TYPE)
        result = value.to(TYPE)
        slot = tl.load(slots + row).to(tl.int64)
        tl.store(query + (at * heads + of_kind) * HEAD_DIM + d, result, mask=inside & (kind == 0))
        tl.store(keys + (slot * kv_heads + of_kind) * HEAD_DIM + d, result, mask=inside & (kind == 1))
        tl.store(values + (slot * kv_heads + of_kind) * HEAD_DIM + d, result, mask=inside & (kind == 2))


@triton.jit(do_not_specialize=["module", "capacity", "partitions", "window"])
def join_heads(
    peak,  # [n, heads, partitions] float32
    total,
    weighted,  # [n, heads, partitions, VALUE_DIM] float32
    context,  # [n]
    partitions,
    window,
    out,  # [n, heads, VALUE_DIM]
    pool,
    a_page,
    groups,  # [T, 3]
    start,
    adapter,
    weight,
    offset,
    rank,
    gain,
    constant,
    modules,
    module,
    partial,  # [heads, n, capacity] float32: a head is a slice
    capacity,
    VALUE_DIM: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    LEAST: tl.constexpr,
    MOST: tl.constexpr,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    TENSOR: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program for each group and query head, the rows being those of the partitions."""
    item, head = tl.program_id(0), tl.program_id(1)
    rows, heads = tl.num_programs(0), tl.num_programs(1)
    TYPE: tl.constexpr = out.dtype.element_ty
    e = tl.arange(0, VALUE_TILE)
    inside = e < VALUE_DIM
    first, last, sequence = group_of(item, groups, groups, True, True)
    tile = tl.zeros([VALUE_TILE, GROUP_ROWS], DOT)
    for row in range(first, last):
        place = (row * heads + head).to(tl.int64) * partitions
        length = tl.load(context + row)
        result = joined(
            peak, total, weighted, place, length, window, e, inside, VALUE_DIM, LEAST, MOST, TOKENS
        )
        tl.store(out + (row * heads + head).to(tl.int64) * VALUE_DIM + e, result.to(TYPE), mask=inside)
        tile = with_column(tile, row - first, rounded(result, TYPE))
    if has_pages(sequence, start):
        lines = first + tl.arange(0, GROUP_ROWS)
        shrink_tile(
            tile, head * VALUE_DIM + e, inside, last - first, pool,
            a_page, sequence, start, adapter, offset,
            rank, modules, module, partial + (head * rows + lines).to(tl.int64) * capacity, RANKS, TENSOR,
        )  # fmt: skip
