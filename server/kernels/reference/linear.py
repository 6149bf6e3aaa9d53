"""A linear layer with its weight laid out once for the library's matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_PACK_ROWS = 64  # the row count the CPU library optimizes its weight layout for


class PackedLinear:
    """``y = x W^T + b``. On a CPU with bf16 instructions the weight is kept in oneDNN's own layout.

    Without that the library reorders it at every call.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias
        self._packed = _pack(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [T, in] -> [T, out]."""
        if self._packed is None:
            return F.linear(x, self._weight, self._bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")  # type: ignore[no-any-return]


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
