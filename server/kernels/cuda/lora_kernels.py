"""Triton kernels of the adapters' delta ``y += Σ_k w_k · B_k (A_k x)``; ``lora.py`` launches them.

Two passes. *Shrink* makes A x, split along the input features so that one row keeps many processors
busy: every slice writes a partial sum of its own. *Expand* adds the slices up in ascending order and
goes on with B. Nothing is added atomically, and a slice has one size whatever the batch: a row has the
same bits beside any others.

Rows that share their mix go through the tensor cores in tiles of rows, and the pages are read once for a
tile. A row that is alone is a tile, too, filled up with rows that don't exist: its bits don't depend on
whether there are others.

Which pages a row has is read from the adapters' own tables. ``start`` [S + 1], ``adapter`` [E] and
``weight`` [E] list the mix of each sequence; ``offset`` and ``rank`` [adapters, modules] say where the
pages of an adapter begin: ``rank`` rows of A, each ``a_page`` elements, then as many columns of B. A row's
partial sums lie in the order of its mix, the ranks of one member behind those of the one before.
"""

import triton
import triton.language as tl

# Numbers that differ from step to step or from module to module: compiled once, not for each kind of them.
_VARYING = ["module", "capacity"]
GROUP_ROWS = tl.constexpr(8)  # rows of a group that decodes; the least that tensor cores multiply as columns


@triton.jit(do_not_specialize=_VARYING)
def shrink_tiles(
    x,  # [T, in], rows x_stride apart
    x_stride,
    in_features,
    pool,
    a_page,
    work,  # [n, 3] first row, last row + 1, sequence
    start,
    adapter,
    offset,
    rank,
    modules,
    module,  # the first of those that take x
    partial,  # [slices, n * ROWS, parts, capacity] float32
    capacity,
    SLICE: tl.constexpr,
    RANKS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program for each tile of rows that share a mix, slice of the input features, and module."""
    item, part, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if tl.load(work + 3 * item) >= tl.load(work + 3 * item + 1):
        return  # there are fewer tiles than there is room for
    lines = tl.arange(0, ROWS)
    rows = tl.load(work + 3 * item).to(tl.int64) + lines
    real = rows < tl.load(work + 3 * item + 1)
    sequence = tl.load(work + 3 * item + 2)
    line = ((part * tl.num_programs(0) + item) * ROWS + lines) * tl.num_programs(2) + which
    place = partial + line.to(tl.int64) * capacity
    for entry in range(tl.load(start + sequence), tl.load(start + sequence + 1)):
        cell = tl.load(adapter + entry) * modules + module + which
        pages = pool + tl.multiple_of(tl.load(offset + cell), 32)
        count = tl.load(rank + cell)
        for first in range(0, count, RANKS):
            r = first + tl.arange(0, RANKS)
            sums = tl.zeros([ROWS, RANKS], tl.float32)
            for begin in range(part * SLICE, tl.minimum((part + 1) * SLICE, in_features), DEPTH):
                k = begin + tl.arange(0, DEPTH)
                inside = k < in_features
                values = tl.load(
                    x + rows[:, None] * x_stride + k[None, :],
                    mask=real[:, None] & inside[None, :],
                    other=0.0,
                )
                a = tl.load(
                    pages + r[:, None] * a_page + k[None, :],
                    mask=(r < count)[:, None] & inside[None, :],
                    other=0.0,
                )
                sums = tl.dot(values.to(DOT), tl.trans(a.to(DOT)), sums, input_precision="ieee")
            tl.store(place[:, None] + r[None, :], sums, mask=real[:, None] & (r < count)[None, :])
        place += count


@triton.jit(do_not_specialize=_VARYING)
def expand_tiles(
    partial,  # [slices, n * ROWS, parts, capacity] float32
    capacity,
    in_features,
    first_out,  # outputs of each module; 0: there are fewer
    second_out,
    third_out,
    pool,
    a_page,
    first_page,  # of B
    other_page,
    work,  # [n, 3] first row, last row + 1, sequence
    start,
    adapter,
    weight,
    offset,
    rank,
    gain,
    constant,
    modules,
    module,
    y,  # [T, out of all], rows y_stride apart
    y_stride,
    SLICE: tl.constexpr,
    RANKS: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    PARTS: tl.constexpr,
    VECTORS: tl.constexpr,  # gains and constants are added as well
    DOT: tl.constexpr,
):
    """One program for each tile of rows that share a mix, and tile of the outputs of a module."""
    item, tile = tl.program_id(0), tl.program_id(1)
    if tl.load(work + 3 * item) >= tl.load(work + 3 * item + 1):
        return  # there are fewer tiles than there is room for
    second, third = tl.cdiv(first_out, OUT), tl.cdiv(first_out, OUT) + tl.cdiv(second_out, OUT)
    which = tl.where(tile < second, 0, tl.where(tile < third, 1, 2))
    begin = tl.where(which == 0, 0, tl.where(which == 1, second, third))
    out_features = tl.where(which == 0, first_out, tl.where(which == 1, second_out, third_out))
    column = tl.where(which == 0, 0, tl.where(which == 1, first_out, first_out + second_out))
    b_page = tl.where(which == 0, first_page, other_page)
    lines = tl.arange(0, ROWS)
    rows = tl.load(work + 3 * item).to(tl.int64) + lines
    real = rows < tl.load(work + 3 * item + 1)
    sequence = tl.load(work + 3 * item + 2)
    n = (tile - begin) * OUT + tl.arange(0, OUT)
    inside = n < out_features
    at = y + rows[:, None] * y_stride + (column + n)[None, :]
    mask = real[:, None] & inside[None, :]
    base = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    sums = tl.zeros([ROWS, OUT], tl.float32)
    place = partial + ((item * ROWS + lines) * PARTS + which).to(tl.int64) * capacity
    per_slice = tl.num_programs(0).to(tl.int64) * ROWS * PARTS * capacity
    for entry in range(tl.load(start + sequence), tl.load(start + sequence + 1)):
        cell = tl.load(adapter + entry) * modules + module + which
        count = tl.load(rank + cell)
        pages = pool + tl.multiple_of(tl.load(offset + cell) + count * a_page, 32)
        coefficient = tl.load(weight + entry)
        if VECTORS:
            page = tl.load(gain + cell)
            if page != 0:
                vector = tl.load(pool + page.to(tl.int64) * 32 + n, mask=inside, other=0.0).to(tl.float32)
                sums += coefficient * (base * vector[None, :])
            page = tl.load(constant + cell)
            if page != 0:
                vector = tl.load(pool + page.to(tl.int64) * 32 + n, mask=inside, other=0.0).to(tl.float32)
                sums += coefficient * vector[None, :]
        for first in range(0, count, RANKS):
            r = first + tl.arange(0, RANKS)
            wanted = real[:, None] & (r < count)[None, :]
            reduced = tl.zeros([ROWS, RANKS], tl.float32)
            for part in range(0, tl.cdiv(in_features, SLICE)):
                reduced += tl.load(place[:, None] + part * per_slice + r[None, :], mask=wanted, other=0.0)
            b = tl.load(
                pages + r[:, None] * b_page + n[None, :],
                mask=(r < count)[:, None] & inside[None, :],
                other=0.0,
            )
            # Tensor cores want both factors in the pages' own type: A x is multiplied in two parts of it.
            scaled = reduced * coefficient
            high = scaled.to(pool.dtype.element_ty).to(DOT)
            sums = tl.dot(high, b.to(DOT), sums, input_precision="ieee")
            if tl.float32 != pool.dtype.element_ty:
                low = (scaled - high.to(tl.float32)).to(pool.dtype.element_ty).to(DOT)
                sums = tl.dot(low, b.to(DOT), sums, input_precision="ieee")
        place += count
    tl.store(at, (base + sums).to(y.dtype.element_ty), mask=mask)
