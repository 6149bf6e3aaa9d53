"""Triton kernels between gate, up and down, and behind the products whose output is added to the residual."""

import triton
import triton.language as tl

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
def activated(gate, GELU: tl.constexpr):
    """What the gate becomes [tile] float32."""
    if GELU:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        return 0.5 * gate * (1.0 + (2.0 * tl.sigmoid(2.0 * inner) - 1.0))  # 2 sigmoid(2 x) - 1 is tanh x
    else:
        return gate * tl.sigmoid(gate)


@triton.jit(do_not_specialize=["module", "down_module", "capacity", "slices", "down_capacity"])
def gate_rows(
    gate_up,  # [T, 2 * width], rows stride apart
    stride,
    inner,  # [T, width] contiguous, or [2 T, width]: behind it, what its input gains make of it
    width,
    pool,
    a_page,  # of gate and up
    b_page,
    down_page,  # of the A of down
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
    input_gain,
    module,  # of the gate; that of up follows
    down_module,
    partial,  # [slices, T, parts, capacity] float32, of gate and up
    capacity,
    slices,
    down_partial,  # [tiles, T, down_capacity] float32: a tile is a slice
    down_capacity,
    TILE: tl.constexpr,
    RANKS: tl.constexpr,
    GELU: tl.constexpr,
    STACKED: tl.constexpr,  # gate and up are one module
    PAGES: tl.constexpr,
    SCALED: tl.constexpr,  # there are input gains of down
    TENSOR: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program for each row, with PAGES for each group, and tile of inner features."""
    item, tile = tl.program_id(0), tl.program_id(1)
    rows = tl.num_programs(0)
    TYPE: tl.constexpr = gate_up.dtype.element_ty
    PARTS: tl.constexpr = 1 if STACKED else 2
    SECOND: tl.constexpr = PARTS - 1
    n = tile * TILE + tl.arange(0, TILE)
    inside = n < width
    behind = n
    if STACKED:
        behind = n + width
    first, last, sequence = group_of(item, groups, sequences, PAGES or SCALED, PAGES)
    lines = first + tl.arange(0, GROUP_ROWS)
    gate_delta = tl.zeros([TILE, GROUP_ROWS], tl.float32)
    up_delta = tl.zeros([TILE, GROUP_ROWS], tl.float32)
    inputs = tl.zeros([TILE, GROUP_ROWS], DOT)
    if PAGES:
        place = partial + (lines * PARTS).to(tl.int64) * capacity
        per_slice = rows.to(tl.int64) * PARTS * capacity
        gate_delta = page_delta(
            n, inside, last - first, place, per_slice, slices, pool, a_page, b_page, sequence,
            start, adapter, weight, offset, rank, modules, module, RANKS, DOT,
        )  # fmt: skip
        up_delta = page_delta(
            behind, inside, last - first, place + SECOND * capacity, per_slice, slices, pool, a_page, b_page,
            sequence, start, adapter, weight, offset, rank, modules, module + SECOND, RANKS, DOT,
        )  # fmt: skip
    for row in range(first, last):
        at = tl.cast(row, tl.int64)
        gate = tl.load(gate_up + at * stride + n, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_up + at * stride + width + n, mask=inside, other=0.0).to(tl.float32)
        if PAGES:
            own = vector_delta(
                gate, n, inside, pool, sequence, start, adapter, weight, gain, constant, modules, module
            )
            gate = rounded(gate + (own + column(gate_delta, row - first)), TYPE)
            own = vector_delta(
                up, behind, inside, pool, sequence, start, adapter, weight, gain, constant, modules,
                module + SECOND,
            )  # fmt: skip
            up = rounded(up + (own + column(up_delta, row - first)), TYPE)
        result = rounded(rounded(activated(gate, GELU), TYPE) * up, TYPE)
        tl.store(inner + at * width + n, result.to(TYPE), mask=inside)
        if SCALED:
            scale = tl.zeros_like(result)
            if sequence >= 0:
                for entry in range(tl.load(start + sequence), tl.load(start + sequence + 1)):
                    page = tl.load(input_gain + tl.load(adapter + entry) * modules + down_module)
                    if page != 0:
                        scale += tl.load(weight + entry) * tl.load(
                            pool + page.to(tl.int64) * 32 + n, mask=inside, other=0.0
                        ).to(tl.float32)
            tl.store(inner + (at + rows) * width + n, (result * scale).to(TYPE), mask=inside)
        if PAGES:
            inputs = with_column(inputs, row - first, result)
    if PAGES:
        if has_pages(sequence, start):
            shrink_tile(
                inputs, n, inside, last - first, pool,
                down_page, sequence, start, adapter, offset, rank, modules, down_module,
                down_partial + (tile * rows + lines).to(tl.int64) * down_capacity, RANKS, TENSOR,
            )  # fmt: skip


@triton.jit(do_not_specialize=["module", "capacity", "slices"])
def add_rows(
    y,  # [T, width] contiguous, changed in place; or [2 T, width]: behind it, the image of the input gains
    width,
    pool,
    a_page,
    b_page,
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
    partial,  # [slices, T, capacity] float32
    capacity,
    slices,
    TILE: tl.constexpr,
    RANKS: tl.constexpr,
    SCALED: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program for each group and tile of the outputs of a module; rows without a mix stay as they are."""
    item, tile = tl.program_id(0), tl.program_id(1)
    rows = tl.num_programs(0)
    first, last, sequence = group_of(item, groups, groups, True, True)
    if has_pages(sequence, start):
        n = tile * TILE + tl.arange(0, TILE)
        inside = n < width
        place = partial + (first + tl.arange(0, GROUP_ROWS)).to(tl.int64) * capacity
        delta = page_delta(
            n, inside, last - first, place, rows.to(tl.int64) * capacity, slices, pool,
            a_page, b_page, sequence, start, adapter, weight, offset, rank, modules, module, RANKS, DOT,
        )  # fmt: skip
        for row in range(first, last):
            at = y + tl.cast(row, tl.int64) * width + n
            base = tl.load(at, mask=inside, other=0.0).to(tl.float32)
            sums = column(delta, row - first) + vector_delta(
                base, n, inside, pool, sequence, start, adapter, weight, gain, constant, modules, module
            )
            if SCALED:
                sums += tl.load(at + rows.to(tl.int64) * width, mask=inside, other=0.0).to(tl.float32)
            tl.store(at, (base + sums).to(y.dtype.element_ty), mask=inside)
