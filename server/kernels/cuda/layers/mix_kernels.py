"""What adapters add to one row, as Triton functions that kernels are made of.

The tables are those of :class:`manylora.server.kernels.cuda.lora.LoraTables`: ``start`` and ``adapter`` and
``weight`` list the members of a sequence's mix, and for each of them and a module ``offset``, ``rank``,
``gain`` and ``constant`` say what lies where in the pool. Vectors are given by the number of their page, a
page having ALIGN elements; page 0 means that there is none.

A shrink leaves its sums in ``partial`` [slices, n, parts, capacity] float32, a slice being so many input
features; an expand adds the slices up, always in the same order. Nothing is added atomically and sizes are
never a matter of the batch: a row has the same bits beside any others.

What a row's mix needs is little work behind much waiting: one load after the other would take most of the
time of a step. So loads that don't need each other are made at once, in tiles.
"""

import triton
import triton.language as tl

ALIGN = tl.constexpr(32)  # elements of a page, PAGE_ALIGN
SLICES = tl.constexpr(32)  # of a sum that are loaded at once


@triton.jit
def has_pages(sequence, start):
    """Whether that sequence, or -1, has a mix."""
    count = 0
    if sequence >= 0:
        count = tl.load(start + sequence + 1) - tl.load(start + sequence)
    return count > 0


@triton.jit
def shrink_slice(
    values,  # [slice] float32, of the input
    k,  # [slice] which features they are
    inside,  # [slice]
    pool,
    a_page,
    sequence,
    start,
    adapter,
    offset,
    rank,
    modules,
    module,
    place,  # where the sums go: one for each rank of each member
    RANKS: tl.constexpr,
):
    """Store A x of a slice of the input for the whole mix of a row."""
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
            ).to(tl.float32)
            tl.store(place + r, tl.sum(a * values[None, :], axis=1), mask=r < count)
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
    y,  # [tile] float32: what a norm makes of its input before it scales
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
    """What the mix of a row adds to a norm [tile] float32."""
    sums = tl.zeros_like(y)
    if sequence >= 0:
        for entry in range(tl.load(start + sequence), tl.load(start + sequence + 1)):
            cell = tl.load(adapter + entry) * modules + module
            sums += tl.load(weight + entry) * vector_part(y, n, inside, pool, cell, gain, constant)
    return sums


@triton.jit
def mix_delta(
    y,  # [tile] float32: the base's output
    n,  # [tile] which of the module's outputs they are
    inside,
    place,  # the row's sums of the first slice
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
    gain,
    constant,
    modules,
    module,
    RANKS: tl.constexpr,
):
    """What the mix of a row adds to a module's outputs [tile] float32."""
    sums = tl.zeros_like(y)
    if sequence >= 0:
        for entry in range(tl.load(start + sequence), tl.load(start + sequence + 1)):
            cell = tl.load(adapter + entry) * modules + module
            coefficient = tl.load(weight + entry)
            count = tl.load(rank + cell)
            pages = pool + tl.multiple_of(tl.load(offset + cell) + count * a_page, 32)
            sums += coefficient * vector_part(y, n, inside, pool, cell, gain, constant)
            for first in range(0, count, RANKS):
                r = first + tl.arange(0, RANKS)
                b = tl.load(
                    pages + r[:, None] * b_page + n[None, :],
                    mask=(r < count)[:, None] & inside[None, :],
                    other=0.0,
                )
                reduced = tl.zeros([RANKS], tl.float32)
                for part in range(0, slices, SLICES):
                    s = part + tl.arange(0, SLICES)
                    parts = tl.load(
                        place + s[:, None] * per_slice + r[None, :],
                        mask=(s < slices)[:, None] & (r < count)[None, :],
                        other=0.0,
                    )
                    reduced += tl.sum(parts, axis=0)
                sums += tl.sum(b.to(tl.float32) * (reduced * coefficient)[:, None], axis=0)
            place += count
    return sums


@triton.jit
def rounded(values, TYPE: tl.constexpr):
    """``values`` as they are after they have been stored in ``TYPE``, float32."""
    return values.to(TYPE).to(tl.float32)
