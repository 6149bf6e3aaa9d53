"""Triton kernels of ``y = x W^T + b`` where W is in 4 or 8 bits.

A weight is what :class:`manylora.server.kernels.codes.Codes` says: computed in float32 by the formula of its
kind, operation by operation (launched without fused multiplication and addition), and rounded once to the
type it is multiplied in. So the products are with the same weights as everywhere else, and only the order of
sums is the tensor cores' own.

Two codes of 4 bits share a byte: the even inputs and the odd ones are multiplied apart, instead of being put
beside each other first.
"""

import triton
import triton.language as tl

# The numbers of manylora.server.kernels.codes.Kind.
NIBBLES = tl.constexpr(1)
BYTES = tl.constexpr(2)
SHIFTED = tl.constexpr(3)
ADDED = tl.constexpr(4)
ADDED_BYTES = tl.constexpr(5)


@triton.jit
def of_groups(
    values,  # [outputs, groups] float32
    n,
    real,
    k,  # [tile] inputs
    inside,
    order,  # [inputs] int32: the group of each input
    groups,
    group,
    WHOLE: tl.constexpr,  # the tile lies in one group
    ORDERED: tl.constexpr,
):
    """What belongs to each output and input: [outputs, tile], or [outputs, 1] where it is the same of all."""
    at = values + n.to(tl.int64)[:, None] * groups
    if WHOLE:
        result = tl.load(at + tl.min(k, axis=0) // group, mask=real[:, None], other=0.0)
    else:
        which = k // group
        if ORDERED:
            which = tl.load(order + k, mask=inside, other=0)
        result = tl.load(at + which[None, :], mask=real[:, None] & inside[None, :], other=0.0)
    return result


@triton.jit
def weights_of(
    codes,  # [outputs, tile] float32: codes of 4 bits by the table, others as they are
    scale,
    offset,
    factor,
    KIND: tl.constexpr,
):
    """The weights [outputs, tile] float32 before they are rounded."""
    if KIND == NIBBLES:
        result = codes * scale
    elif KIND == BYTES:
        result = (codes * scale) * factor
    elif KIND == SHIFTED:
        result = (codes - offset) * scale
    else:
        result = codes * scale + offset
    return result


@triton.jit
def multiply_codes(
    x,  # [rows, inputs], rows x_stride apart
    x_stride,
    rows,
    packed,  # [outputs, inputs] int8, or [outputs, inputs / 2] uint8: an even input in the high bits
    scales,  # [outputs, groups] float32
    offsets,  # [outputs, groups] float32, of kinds that have them
    table,  # [16] float32, of 4 bits
    order,  # [inputs] int32, where groups do not follow each other
    bias,  # [outputs]
    y,  # [rows, outputs], rows y_stride apart
    y_stride,
    inputs,
    outputs,
    groups,
    group,
    factor,
    KIND: tl.constexpr,
    HALVES: tl.constexpr,  # two codes a byte
    PLAIN: tl.constexpr,  # a code of 4 bits is its own value
    WHOLE: tl.constexpr,
    ORDERED: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    DEPTH: tl.constexpr,  # elements of packed that are taken together
    DOT: tl.constexpr,
):
    """One program for each tile of rows and of outputs."""
    TYPE: tl.constexpr = x.dtype.element_ty
    SHARE: tl.constexpr = 2 if HALVES else 1
    m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) * OUT + tl.arange(0, OUT)
    there, real = m < rows, n < outputs
    x_row = x + m.to(tl.int64)[:, None] * x_stride
    width = inputs // SHARE
    row = packed + n.to(tl.int64)[:, None] * width
    sums = tl.zeros([ROWS, OUT], tl.float32)
    for begin in range(0, width, DEPTH):
        at = begin + tl.arange(0, DEPTH)
        inside = at < width
        stored = tl.load(row + at[None, :], mask=real[:, None] & inside[None, :], other=0)
        for half in tl.static_range(SHARE):
            k = at * SHARE + half
            codes = stored
            if HALVES:
                codes = (stored >> 4) if half == 0 else (stored & 15)
            values = codes.to(tl.float32)
            if HALVES:
                if not PLAIN:
                    values = tl.load(table + codes.to(tl.int32))
            scale = of_groups(scales, n, real, k, inside, order, groups, group, WHOLE, ORDERED)
            offset = scale
            if KIND >= SHIFTED:
                offset = of_groups(offsets, n, real, k, inside, order, groups, group, WHOLE, ORDERED)
            weights = weights_of(values, scale, offset, factor, KIND).to(TYPE)
            given = tl.load(x_row + k[None, :], mask=there[:, None] & inside[None, :], other=0.0)
            sums = tl.dot(given.to(DOT), tl.trans(weights.to(DOT)), sums, input_precision="ieee")
    if BIAS:
        sums += tl.load(bias + n, mask=real, other=0.0).to(tl.float32)[None, :]
    place = y + m.to(tl.int64)[:, None] * y_stride + n[None, :]
    tl.store(place, sums.to(y.dtype.element_ty), mask=there[:, None] & real[None, :])


# The same, but one binary for any number of rows.
multiply_codes_fixed = triton.jit(multiply_codes.fn, do_not_specialize=["rows"])
