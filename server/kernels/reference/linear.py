"""A linear layer with its weight laid out once for the library's matrix product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from manylora.server.kernels.matrices import Matrix, QuantizedMatrix
from manylora.server.kernels.ranks import Ranks

_PACK_ROWS = 64  # the row count the CPU library optimizes its weight layout for


class DenseLinear(Protocol):
    """``y = x W^T + b`` with a weight of 16 or 32 bits."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product of the rows ``x`` with the weight: [T, in] -> [T, out]."""

    @property
    def nbytes(self) -> int:
        """Bytes the weight takes."""

    def weight(self) -> torch.Tensor:
        """The weight [out, in], as it was given."""

    def shares(self, tensor: torch.Tensor) -> bool:
        """Whether the weight is kept in the memory of ``tensor``."""


Dense = Callable[[torch.Tensor, torch.Tensor | None], DenseLinear]  # of a weight and a bias


class PackedLinear:
    """``y = x W^T + b``. On a CPU with bf16 instructions the weight is kept in oneDNN's own layout.

    Without that the library reorders it at every call.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._bias = bias
        self._packed = _pack(weight)
        self._weight = weight if self._packed is None else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product of the rows ``x`` with the weight: [T, in] -> [T, out]."""
        if self._weight is not None:
            return F.linear(x, self._weight, self._bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        """Bytes the weight takes."""
        kept = self._packed if self._weight is None else self._weight
        assert kept is not None
        return kept.numel() * kept.element_size()

    def weight(self) -> torch.Tensor:
        """The weight [out, in], as it was given."""
        if self._weight is not None:
            return self._weight
        assert self._packed is not None
        return self._packed.to_dense()

    def shares(self, tensor: torch.Tensor) -> bool:
        """Whether the weight is kept in the memory of ``tensor``."""
        return self._weight is not None and self._weight.data_ptr() == tensor.data_ptr()


def row_by_row(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x W^T`` [n, out] of ``x`` [n, in] and ``weight`` [out, in]: a row as it is computed alone.

    Libraries may compute it otherwise beside others, or at another place in a cache line.
    """
    if not len(x):
        return F.linear(x, weight)
    return torch.cat([F.linear(row.clone(), weight) for row in x.split(1)])


class JoinedHead:
    """The output head of which each rank has some rows: the logits of all of them."""

    def __init__(self, part: DenseLinear, ranks: Ranks) -> None:
        """``part`` is this rank's."""
        self._part = part
        self._ranks = ranks
        self.nbytes = part.nbytes
        self.shares = part.shares

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The logits [R, V] of ``x`` [R, D]."""
        return self._ranks.join(self._part(x))


Linear = DenseLinear | QuantizedMatrix


def linear(matrix: Matrix, bias: torch.Tensor | None, dense: Dense = PackedLinear) -> Linear:
    """``x`` [T, in] -> ``x W^T + b`` [T, out]. A quantized matrix has its bias; others are ``dense``."""
    return matrix if isinstance(matrix, QuantizedMatrix) else dense(matrix, bias)


def _pack(weight: torch.Tensor) -> torch.Tensor | None:
    usable = (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    if not usable:
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)  # type: ignore[no-any-return]
