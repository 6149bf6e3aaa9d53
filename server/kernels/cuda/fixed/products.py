"""Products whose rows have the same bits in any company."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton

from manylora.server.kernels.codes import Codes, Kind
from manylora.server.kernels.cuda.coded.products import KINDS, CodedProduct
from manylora.server.kernels.cuda.fixed.product_kernels import multiply_rows
from manylora.server.kernels.cuda.types import dot_type, multiplies
from manylora.server.kernels.matrices import QuantizedLayer, QuantizedMatrix
from manylora.server.kernels.weights import MATRICES, DecoderWeights, LayerWeights

_ROWS = 64  # of a tile
_LEAST_ROWS = 16  # without tensor cores: every operand is in registers then
_DEPTH = 64  # inputs that are taken together
_LEAST_DEPTH = 32
_OUT = 64  # outputs of a tile
_LEAST_OUT = 32  # of matrices with few, so that there are programs for all processors
_MANY = 16_384  # outputs


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x W^T + b`` [n, out] of ``x`` [n, in] and ``weight`` [out, in], all of one dtype.

    Tiles have one shape for a dtype and a number of outputs.
    """
    (rows, inputs), outputs = x.shape, len(weight)
    y = x.new_empty(rows, outputs)
    if not rows:
        return y
    x, cores = x.contiguous(), multiplies(x.device, x.dtype)
    tile, depth = (_ROWS, _DEPTH) if cores else (_LEAST_ROWS, _LEAST_DEPTH)
    out = _OUT if cores and outputs >= _MANY else _LEAST_OUT
    multiply_rows[(triton.cdiv(rows, tile), triton.cdiv(outputs, out))](
        x, rows, weight, weight.stride(0), weight.stride(1), x if bias is None else bias,
        y, inputs, outputs,
        BIAS=bias is not None, ROWS=tile, OUT=out, DEPTH=depth, DOT=dot_type(x.dtype),
    )  # fmt: skip
    return y


class FixedLinear:
    """``y = x W^T + b`` of a matrix with 16 or 32 bits a weight."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product of the rows ``x`` with the weight: [T, in] -> [T, out]."""
        return multiply(x, self._weight, self._bias)

    @property
    def nbytes(self) -> int:
        """Bytes the weight takes."""
        return self._weight.nbytes

    def weight(self) -> torch.Tensor:
        """The weight [out, in], as it was given."""
        return self._weight

    def shares(self, tensor: torch.Tensor) -> bool:
        """Whether the weight is kept in the memory of ``tensor``."""
        return self._weight.data_ptr() == tensor.data_ptr()


class FixedPart:
    """A layer of a quantized base, multiplied from its codes by one kernel whatever the number of rows."""

    waits = False

    def __init__(self, part: QuantizedLayer) -> None:
        """``part`` has codes that are multiplied from."""
        codes = part.codes
        assert codes is not None
        self._part = part
        self._codes = codes
        self._product = (
            FixedLinear(part.weight(), part.bias)
            if codes.kind is Kind.PLAIN
            else CodedProduct(codes, part.bias, fixed=True)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self._part.shape

    @property
    def codes(self) -> Codes | None:
        """What the layer stores."""
        return self._codes

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's bias b [out], or None."""
        return self._part.bias

    @property
    def nbytes(self) -> int:
        """Bytes its codes and scales take."""
        return self._part.nbytes

    def weight(self) -> torch.Tensor:
        """W [out, in] that the codes stand for, made anew at every call."""
        return self._part.weight()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``W x + b`` of rows ``x`` [T, in], in the dtype of ``x``."""
        return self._product(x)


def unsupported_codes(weights: DecoderWeights) -> str | None:
    """Why a quantized matrix has no such product, in one phrase; None if all have."""
    for layer in weights.layers:
        for matrix in _quantized(layer).values():
            for part in matrix.parts:
                if part.codes is None:
                    return "a quantized base that another library multiplies by"
                if part.codes.kind not in KINDS | {Kind.PLAIN}:
                    return "a matrix of codes of several kinds"
    return None


def with_fixed_codes(weights: DecoderWeights) -> DecoderWeights:
    """The same decoder, whose quantized matrices are multiplied by so."""
    layers = tuple(replace(layer, **_fixed(layer)) for layer in weights.layers)  # type: ignore[arg-type]
    return replace(weights, layers=layers)


def _quantized(layer: LayerWeights) -> dict[str, QuantizedMatrix]:
    matrices = {name: getattr(layer, name) for name in MATRICES}
    return {name: m for name, m in matrices.items() if isinstance(m, QuantizedMatrix)}


def _fixed(layer: LayerWeights) -> dict[str, QuantizedMatrix]:
    """The quantized matrices of a layer, by name."""
    return {
        name: QuantizedMatrix(tuple(FixedPart(part) for part in matrix.parts))
        for name, matrix in _quantized(layer).items()
    }
