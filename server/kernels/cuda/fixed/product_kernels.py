"""Triton kernel of ``y = x W^T + b`` in which a row's sums don't depend on how many rows there are.

Libraries choose among kernels by the number of rows, and split sums where there are few. Here there is
one shape of tiles, filled up with rows that don't exist, and every output is one sum in float32 over the
inputs in ascending order. The number of rows is no constant of the kernel: one binary computes them all.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def multiply_rows(
    x,  # [rows, inputs] contiguous
    rows,
    weight,  # [outputs, inputs], with the strides that follow
    output_stride,
    input_stride,
    bias,  # [outputs]
    y,  # [rows, outputs] contiguous
    inputs,
    outputs,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    DEPTH: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program for each tile of rows and outputs; those of one part of the weight are neighbours."""
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * OUT + tl.arange(0, OUT)
    there, real = m < rows, n < outputs
    x_row = x + m.to(tl.int64)[:, None] * inputs
    column = weight + n.to(tl.int64)[None, :] * output_stride
    sums = tl.zeros([ROWS, OUT], tl.float32)
    for begin in range(0, inputs, DEPTH):
        k = begin + tl.arange(0, DEPTH)
        inside = k < inputs
        given = tl.load(x_row + k[None, :], mask=there[:, None] & inside[None, :], other=0.0)
        w = tl.load(
            column + k.to(tl.int64)[:, None] * input_stride,
            mask=inside[:, None] & real[None, :],
            other=0.0,
        )
        sums = tl.dot(given.to(DOT), w.to(DOT), sums, input_precision="ieee")
    if BIAS:
        sums += tl.load(bias + n, mask=real, other=0.0).to(tl.float32)[None, :]
    place = y + m.to(tl.int64)[:, None] * outputs + n[None, :]
    tl.store(place, sums.to(y.dtype.element_ty), mask=there[:, None] & real[None, :])
