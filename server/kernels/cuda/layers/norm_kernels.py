"""Triton kernel of what stands before a product: the residual, the norms, and the adapters' A.

``x' = x + s · norm(y)`` is the residual stream, where the norm of what is added, and the scale, are those of
some families only; ``h = norm(x')`` is what the next matrices multiply. Roundings are those of the PyTorch
layer. A program knows a whole row's sum of squares, and makes one slice of ``h``; for that slice it
multiplies the A of a module that the mix of its group has. A row without a mix is one program's. Rows are
read in tiles of WHOLE features: piece by piece, most of the time would go into waiting for the next.
"""

import triton
import triton.language as tl

from manylora.server.kernels.cuda.layers.mix_kernels import (
    group_of,
    has_pages,
    rounded,
    shrink_tile,
    vector_delta,
    with_column,
)
from manylora.server.kernels.cuda.lora_kernels import GROUP_ROWS


@triton.jit
def normal_of(values, spread, weight, k, inside):
    """(n(x), w) [slice] float32, n(x) rounded to the type of the weight as in Hugging Face models."""
    normal = rounded(values * spread, weight.dtype.element_ty)
    return normal, tl.load(weight + k, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def residual(
    x,  # the row's first element
    y,  # of what is added
    k,
    inside,
    spread,  # of y
    post_weight,
    residual_scale,
    pool,
    sequence,
    start,
    adapter,
    weight,
    gain,
    constant,
    modules,
    post_module,
    ADD: tl.constexpr,
    POST: tl.constexpr,
    SCALE: tl.constexpr,
    MIXES: tl.constexpr,
):
    """A slice of x' float32, with the values it has once it is stored."""
    TYPE: tl.constexpr = x.dtype.element_ty
    values = tl.load(x + k, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(y + k, mask=inside, other=0.0).to(tl.float32)
        if POST:
            normal, w = normal_of(added, spread, post_weight, k, inside)
            added = w * normal
            if MIXES:
                added += vector_delta(
                    normal,
                    k,
                    inside,
                    pool,
                    sequence,
                    start,
                    adapter,
                    weight,
                    gain,
                    constant,
                    modules,
                    post_module,
                )
            added = rounded(added, TYPE)
        if SCALE:
            added = rounded(added * residual_scale, TYPE)
        values = rounded(values + added, TYPE)
    return values


@triton.jit
def finished(
    values,  # [tile] float32: x'
    k,
    inside,
    spread,  # of x'
    norm_weight,
    h,  # where the row's h goes
    x_out,
    first,  # whether this program stores it
    pool,
    sequence,
    start,
    adapter,
    weight,
    gain,
    constant,
    modules,
    norm_module,
    ADD: tl.constexpr,
    MIXES: tl.constexpr,
):
    """Store a tile of h and x'; h [tile] float32, with the values it has once it is stored."""
    TYPE: tl.constexpr = h.dtype.element_ty
    normal, w = normal_of(values, spread, norm_weight, k, inside)
    result = w * normal
    if MIXES:
        result += vector_delta(
            normal, k, inside, pool, sequence, start, adapter, weight, gain, constant, modules, norm_module
        )
    if first:
        tl.store(h + k, result.to(TYPE), mask=inside)
        if ADD:
            tl.store(x_out + k, values.to(TYPE), mask=inside)
    return rounded(result, TYPE)


@triton.jit(do_not_specialize=["module", "norm_module", "post_module", "capacity", "eps", "residual_scale"])
def norm_rows(
    x,  # [T, width]
    x_stride,
    y,  # [T, width] what is added to x, if anything
    y_stride,
    x_out,  # [T, width] contiguous: x', where anything is added
    h_out,  # [T, width] contiguous
    post_weight,  # [width] of the norm of y, if there is one
    norm_weight,  # [width]
    width,
    eps,
    residual_scale,
    pool,
    a_page,
    sequences,  # [T] the sequence of each row, -1: none
    groups,  # [T, 3] with PAGES
    start,
    adapter,
    weight,
    offset,
    rank,
    gain,
    constant,
    modules,
    module,  # the first of the modules that take h
    norm_module,
    post_module,
    partial,  # [slices, T, parts, capacity] float32
    capacity,
    SLICE: tl.constexpr,
    WHOLE: tl.constexpr,  # features of a row that are read at once
    RANKS: tl.constexpr,
    ADD: tl.constexpr,
    POST: tl.constexpr,
    SCALE: tl.constexpr,
    MIXES: tl.constexpr,  # adapters may change the norms
    PAGES: tl.constexpr,  # the A of the mixes is multiplied here
    TENSOR: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program for each row; with PAGES for each group, slice and module that takes h."""
    item, part, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row, last_row, sequence = group_of(item, groups, sequences, MIXES, PAGES)
    mixed = False
    if PAGES:
        mixed = has_pages(sequence, start)
    begin = part * SLICE
    if (mixed and begin < width) or (part + which == 0):
        tile = tl.zeros([SLICE, GROUP_ROWS], DOT)
        for row in range(first_row, last_row):
            at = tl.cast(row, tl.int64)
            own, added = x + at * x_stride, y + at * y_stride
            h, after = h_out + at * width, x_out + at * width
            spread = 0.0
            if POST:
                squares = tl.zeros([WHOLE], tl.float32)
                for first in range(0, width, WHOLE):
                    k = first + tl.arange(0, WHOLE)
                    values = tl.load(added + k, mask=k < width, other=0.0).to(tl.float32)
                    squares += values * values
                spread = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / width + eps)
            squares = tl.zeros([WHOLE], tl.float32)
            for first in range(0, width, WHOLE):
                k = first + tl.arange(0, WHOLE)
                values = residual(
                    own, added, k, k < width, spread, post_weight, residual_scale, pool, sequence,
                    start, adapter, weight,
                    gain, constant, modules, post_module, ADD, POST, SCALE, MIXES,
                )  # fmt: skip
                squares += values * values
            of_x = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / width + eps)
            if not mixed:
                for first in range(0, width, WHOLE):
                    k = first + tl.arange(0, WHOLE)
                    values = residual(
                        own, added, k, k < width, spread, post_weight, residual_scale, pool, sequence,
                        start, adapter, weight,
                        gain, constant, modules, post_module, ADD, POST, SCALE, MIXES,
                    )  # fmt: skip
                    finished(
                        values, k, k < width, of_x, norm_weight, h, after, True, pool, sequence,
                        start, adapter, weight, gain, constant, modules, norm_module, ADD, MIXES,
                    )  # fmt: skip
            if PAGES:
                if mixed:
                    k = begin + tl.arange(0, SLICE)
                    inside = k < width
                    values = residual(
                        own, added, k, inside, spread, post_weight, residual_scale, pool, sequence,
                        start, adapter, weight,
                        gain, constant, modules, post_module, ADD, POST, SCALE, MIXES,
                    )  # fmt: skip
                    result = finished(
                        values, k, inside, of_x, norm_weight, h, after, which == 0, pool, sequence,
                        start, adapter, weight, gain, constant, modules, norm_module, ADD, MIXES,
                    )  # fmt: skip
                    tile = with_column(tile, row - first_row, result)
        if PAGES:
            if mixed:
                k = begin + tl.arange(0, SLICE)
                rows = first_row + tl.arange(0, GROUP_ROWS)
                place = ((part * tl.num_programs(0) + rows) * tl.num_programs(2) + which).to(tl.int64)
                shrink_tile(
                    tile, k, k < width, last_row - first_row, pool,
                    a_page, sequence, start, adapter, offset, rank, modules,
                    module + which, partial + place * capacity, RANKS, TENSOR,
                )  # fmt: skip
