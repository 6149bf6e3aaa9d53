"""What adapters add to the rows of a group, as Triton functions that kernels are made of.

The tables are those of :class:`manylora.server.kernels.cuda.lora.LoraTables`: ``start`` and ``adapter`` and
``weight`` list the members of a sequence's mix, and for each of them and a module ``offset``, ``rank``,
``gain`` and ``constant`` say what lies where in the pool. Vectors are given by the number of their page, a
page having ALIGN elements; page 0 means that there is none.

A program takes a group: at most GROUP_ROWS adjacent rows of one mix, whose pages it reads once. ``groups``
[T, 3] lists (first row, last row + 1, sequence); behind the last there are empty ones. What is done row by
row is one piece of code in a loop; what goes through the tensor cores are tiles of GROUP_ROWS rows however
many there are, each row a column of its own. Sums run in one order: a row has the same bits alone and in any
group.

A shrink leaves its sums in ``partial`` [slices, T, parts, capacity] float32, a slice being so many input
features; an expand adds the slices up, always in the same order. Nothing is added atomically and sizes are
never a matter of the batch.

What a row's mix needs is little work behind much waiting: one load after the other would take most of the
time of a step. So loads that don't need each other are made at once, in tiles.
"""

import triton
import triton.language as tl

from manylora.server.kernels.cuda.lora_kernels import GROUP_ROWS

ALIGN = tl.constexpr(32)  # elements of a page, PAGE_ALIGN
SLICES = tl.constexpr(32)  # of a sum that are loaded at once


@triton.jit
def group_of(item, groups, sequences, MIXES: tl.constexpr, GROUPED: tl.constexpr):
    """(first row, last row + 1, sequence or -1) of a program: a group, or without groups one row."""
    first, last, sequence = item, item + 1, -1
    if GROUPED:
        first, last = tl.load(groups + 3 * item), tl.load(groups + 3 * item + 1)
        sequence = tl.where(first < last, tl.load(groups + 3 * item + 2), -1)
    elif MIXES:
        sequence = tl.load(sequences + item)
    return first, last, sequence


@triton.jit
def column(tile, i):
    """Column ``i`` [n] of a tile [n, GROUP_ROWS]."""
    lane = tl.arange(0, GROUP_ROWS)
    return tl.sum(tl.where(lane[None, :] == i, tile, 0.0), axis=1)


@triton.jit
def with_column(tile, i, values):
    """A tile [n, GROUP_ROWS] with ``values`` [n] as its column ``i``."""
    lane = tl.arange(0, GROUP_ROWS)
    return tl.where(lane[None, :] == i, values.to(tile.dtype)[:, None], tile)


@triton.jit
def has_pages(sequence, start):
    """Whether that sequence, or -1, has a mix."""
    count = 0
    if sequence >= 0:
        count = tl.load(start + sequence + 1) - tl.load(start + sequence)
    return count > 0


@triton.jit
def products(a, tile, count, TENSOR: tl.constexpr):
    """a [r, n] times the first ``count`` columns of a tile [n, GROUP_ROWS]: [r, GROUP_ROWS] float32."""
    if TENSOR:
        return tl.dot(a.to(tile.dtype), tile, input_precision="ieee")
    else:
        # Without tensor cores a product of tiles would want all of both in registers.
        lane = tl.arange(0, GROUP_ROWS)
        sums = tl.zeros([a.shape[0], GROUP_ROWS], tl.float32)
        wide = a.to(tl.float32)
        for i in range(count):
            one = tl.sum(wide * column(tile.to(tl.float32), i)[None, :], axis=1)
            sums = tl.where(lane[None, :] == i, one[:, None], sums)
        return sums


@triton.jit
def shrink_tile(
    tile,  # [slice, GROUP_ROWS] of the input, a column for each row
    k,  # [slice] which features they are
    inside,  # [slice]
    rows,  # that there are
    pool,
    a_page,
    sequence,
    start,
    adapter,
    offset,
    rank,
    modules,
    module,
    place,  # [GROUP_ROWS] where each row's sums go: one for each rank of each member
    RANKS: tl.constexpr,
    TENSOR: tl.constexpr,
):
    """Store A x of a slice of the input for the whole mix of a group."""
    real = tl.arange(0, GROUP_ROWS) < rows
    for entry in range(tl.load(start + sequence), tl.load(start + sequence + 1)):
        cell = tl.load(adapter + entry) * modules + module
        pages = pool + tl.multiple_of(tl.load(offset + cell), 32)
        count = tl.load(rank + cell)
        for first in range(0, count, RANKS):
            r = first + tl.arange(0, RANKS)
            a = tl.load(
                pages + r[:, None] * a_page + k[None, :],
                mask=(r < count)[:, None] & inside[None, :],
                other=0.0,
            )
            sums = products(a, tile, rows, TENSOR)
            tl.store(place[None, :] + r[:, None], sums, mask=(r < count)[:, None] & real[None, :])
        place += count


@triton.jit
def vector_part(y, n, inside, pool, cell, gain, constant):
    """γ ⊙ y + c [tile] float32 of one member; zeros where it has neither."""
    added = tl.zeros_like(y)
    page = tl.load(gain + cell)
    if page != 0:
        added = y * tl.load(pool + page.to(tl.int64) * ALIGN + n, mask=inside, other=0.0).to(tl.float32)
    page = tl.load(constant + cell)
    if page != 0:
        added += tl.load(pool + page.to(tl.int64) * ALIGN + n, mask=inside, other=0.0).to(tl.float32)
    return added


@triton.jit
def vector_delta(
    y,  # [tile] float32: the output of a module; of a norm, what it makes of its input before it scales
    n,
    inside,
    pool,
    sequence,
    start,
    adapter,
    weight,
    gain,
    constant,
    modules,
    module,
):
    """What the gains and constants of a row's mix add to it [tile] float32."""
    sums = tl.zeros_like(y)
    if sequence >= 0:
        for entry in range(tl.load(start + sequence), tl.load(start + sequence + 1)):
            cell = tl.load(adapter + entry) * modules + module
            sums += tl.load(weight + entry) * vector_part(y, n, inside, pool, cell, gain, constant)
    return sums


@triton.jit
def page_delta(
    n,  # [tile] which of the module's outputs they are
    inside,
    rows,  # that there are
    place,  # [GROUP_ROWS] each row's sums of the first slice
    per_slice,
    slices,
    pool,
    a_page,
    b_page,
    sequence,
    start,
    adapter,
    weight,
    offset,
    rank,
    modules,
    module,
    RANKS: tl.constexpr,
    DOT: tl.constexpr,
):
    """What the rank pages of a group's mix add to a module's outputs [tile, GROUP_ROWS] float32."""
    lane = tl.arange(0, GROUP_ROWS)
    sums = tl.zeros([n.shape[0], GROUP_ROWS], tl.float32)
    if sequence >= 0:
        for entry in range(tl.load(start + sequence), tl.load(start + sequence + 1)):
            cell = tl.load(adapter + entry) * modules + module
            coefficient = tl.load(weight + entry)
            count = tl.load(rank + cell)
            pages = pool + tl.multiple_of(tl.load(offset + cell) + count * a_page, 32)
            for first in range(0, count, RANKS):
                r = first + tl.arange(0, RANKS)
                b = tl.load(
                    pages + r[None, :] * b_page + n[:, None],
                    mask=(r < count)[None, :] & inside[:, None],
                    other=0.0,
                ).to(DOT)
                wanted = (r < count)[:, None] & (lane < rows)[None, :]
                reduced = tl.zeros([RANKS, GROUP_ROWS], tl.float32)
                for part in range(0, slices, SLICES):
                    s = part + tl.arange(0, SLICES)
                    parts = tl.load(
                        place[None, None, :] + s[:, None, None] * per_slice + r[None, :, None],
                        mask=(s < slices)[:, None, None] & wanted[None, :, :],
                        other=0.0,
                    )
                    reduced += tl.sum(parts, axis=0)
                scaled = reduced * coefficient
                # Tensor cores want both factors in the pages' own type: A x is multiplied in two parts of it.
                high = scaled.to(pool.dtype.element_ty).to(DOT)
                sums = tl.dot(b, high, sums, input_precision="ieee")
                if tl.float32 != pool.dtype.element_ty:
                    low = (scaled - high.to(tl.float32)).to(pool.dtype.element_ty).to(DOT)
                    sums = tl.dot(b, low, sums, input_precision="ieee")
            place += count
    return sums


@triton.jit
def rounded(values, TYPE: tl.constexpr):
    """``values`` as they are after they have been stored in ``TYPE``, float32."""
    return values.to(TYPE).to(tl.float32)
