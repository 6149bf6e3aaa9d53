"""The product of rows with a matrix in few bits in Triton, with nothing that waits for the device."""

from __future__ import annotations

import torch
import triton

from manylora.server.kernels.codes import PLACES, WIDE, Codes, Kind
from manylora.server.kernels.cuda.coded.product_kernels import multiply_codes, multiply_codes_fixed
from manylora.server.kernels.cuda.types import dot_type, multiplies, tile_of

KINDS = frozenset(Kind) - {Kind.PLAIN, Kind.SEVERAL}
_MOST_TILE = 64  # rows of a program
_FIXED_TILE = 32  # rows of a program where that is one number: of more, registers would not hold all
_LEAST_TILE = 16  # without tensor cores: every operand is in registers then
_OUT = 32  # outputs of a program
_DEPTH = 64  # elements of the codes that are taken together


class CodedProduct:
    """``x W^T + b`` of one matrix."""

    most_rows = 128  # beyond these a matrix is better unpacked once for the library

    def __init__(self, codes: Codes, bias: torch.Tensor | None, *, fixed: bool = False) -> None:
        """``bias`` [out]; ``codes`` are of one of KINDS. ``fixed``: tiles have one shape for any rows."""
        assert codes.kind in KINDS
        self._codes = codes
        self._bias = bias
        self._fixed = fixed
        self._order = None if codes.order is None else codes.order.int()
        self._halves = codes.kind not in WIDE
        share = 2 if self._halves else 1
        # A tile of inputs lies in one group, so that its scale is loaded once for an output.
        fits = codes.group % (_DEPTH * share) == 0 or codes.scales.shape[1] == 1
        self._whole = codes.order is None and fits
        self._plain = codes.table is not None and torch.equal(codes.table.cpu(), PLACES)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [T, in] -> [T, out] in the dtype of ``x``, which the weights are rounded to."""
        codes = self._codes
        (outputs, inputs), rows = codes.shape, len(x)
        y = x.new_empty(rows, outputs)
        most = _MOST_TILE if multiplies(x.device, x.dtype) else _LEAST_TILE
        tile = min(most, _FIXED_TILE if self._fixed else tile_of(rows))
        absent = codes.scales
        kernel = multiply_codes_fixed if self._fixed else multiply_codes
        kernel[(triton.cdiv(outputs, _OUT), triton.cdiv(rows, tile))](
            x, x.stride(0), rows, codes.packed, codes.scales,
            absent if codes.offsets is None else codes.offsets,
            absent if codes.table is None else codes.table,
            absent if self._order is None else self._order,
            absent if self._bias is None else self._bias,
            y, y.stride(0), inputs, outputs, codes.scales.shape[1], codes.group, codes.factor,
            KIND=int(codes.kind), HALVES=self._halves, PLAIN=self._plain, WHOLE=self._whole,
            ORDERED=self._order is not None, BIAS=self._bias is not None,
            ROWS=tile, OUT=_OUT, DEPTH=_DEPTH, DOT=dot_type(x.dtype), enable_fp_fusion=False,
        )  # fmt: skip
        return y


def coded_product(codes: Codes, bias: torch.Tensor | None) -> CodedProduct | None:
    """That of a matrix; None for kinds that no kernel unpacks."""
    return CodedProduct(codes, bias) if codes.kind in KINDS else None
