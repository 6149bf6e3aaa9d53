"""Triton kernels between gate, up and down, and behind the products whose output is added to the residual."""

import triton
import triton.language as tl

from manylora.server.kernels.cuda.layers.mix_kernels import has_pages, mix_delta, rounded, shrink_slice


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
):
    """One program for each row and tile of inner features."""
    row, tile = tl.program_id(0), tl.program_id(1)
    rows = tl.num_programs(0)
    TYPE: tl.constexpr = gate_up.dtype.element_ty
    n = tile * TILE + tl.arange(0, TILE)
    inside = n < width
    at = row.to(tl.int64)
    gate = tl.load(gate_up + at * stride + n, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + at * stride + width + n, mask=inside, other=0.0).to(tl.float32)
    sequence = -1
    if PAGES or SCALED:
        sequence = tl.load(sequences + row)
    if PAGES:
        PARTS: tl.constexpr = 1 if STACKED else 2
        SECOND: tl.constexpr = PARTS - 1
        place = partial + (row * PARTS).to(tl.int64) * capacity
        per_slice = rows.to(tl.int64) * PARTS * capacity
        gate = rounded(
            gate
            + mix_delta(
                gate, n, inside, place, per_slice, slices, pool, a_page, b_page, sequence,
                start, adapter, weight,
                offset, rank, gain, constant, modules, module, RANKS,
            ),
            TYPE,
        )  # fmt: skip
        behind = n
        if STACKED:
            behind = n + width
        up = rounded(
            up
            + mix_delta(
                up, behind, inside, place + SECOND * capacity, per_slice, slices, pool,
                a_page, b_page, sequence,
                start, adapter, weight, offset, rank, gain, constant, modules, module + SECOND, RANKS,
            ),
            TYPE,
        )  # fmt: skip
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
        if has_pages(sequence, start):
            shrink_slice(
                result, n, inside, pool,
                down_page, sequence, start, adapter, offset, rank, modules, down_module,
                down_partial + (tile * rows + row).to(tl.int64) * down_capacity, RANKS,
            )  # fmt: skip


@triton.jit(do_not_specialize=["module", "capacity", "slices"])
def add_rows(
    y,  # [T, width] contiguous, changed in place; or [2 T, width]: behind it, the image of the input gains
    width,
    pool,
    a_page,
    b_page,
    sequences,
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
):
    """One program for each row and tile of the outputs of a module; rows without a mix stay as they are."""
    row, tile = tl.program_id(0), tl.program_id(1)
    rows = tl.num_programs(0)
    sequence = tl.load(sequences + row)
    if has_pages(sequence, start):
        n = tile * TILE + tl.arange(0, TILE)
        inside = n < width
        at = y + row.to(tl.int64) * width + n
        base = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        place = partial + row.to(tl.int64) * capacity
        sums = mix_delta(
            base, n, inside, place, rows.to(tl.int64) * capacity, slices, pool,
            a_page, b_page, sequence, start,
            adapter, weight, offset, rank, gain, constant, modules, module, RANKS,
        )  # fmt: skip
        if SCALED:
            sums += tl.load(at + rows.to(tl.int64) * width, mask=inside, other=0.0).to(tl.float32)
        tl.store(at, (base + sums).to(y.dtype.element_ty), mask=inside)
