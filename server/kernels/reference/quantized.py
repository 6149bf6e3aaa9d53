"""Linear layers of a quantized base: on what bitsandbytes stores, or on codes of a checkpoint.

4-bit layers are bitsandbytes' own ``Linear4bit``, whose rows do not depend on each other. Of 8-bit layers
only the stored weights are taken, because there they do: ``Linear8bitLt`` computes every input column in
which any row of the batch has an outlier in full precision for all rows, so a sequence's result would
change with its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from manylora.server.kernels.buffers import total_bytes
from manylora.server.kernels.reference.coded.linear import CodedLinear

_PACKED_OUTPUTS = 32  # whose 4-bit codes bitsandbytes keeps together for CPUs with AVX-512 BF16


class Int8Linear(nn.Module):
    """LLM.int8() (https://arxiv.org/abs/2208.07339) with outliers row by row: ``y = x W^T + b``.

    Of each row the values from ``threshold`` up meet the dequantized weight in the row's own dtype, the
    others are rounded to 8 bits with a scale of the row's own. For one row alone that is exactly what
    ``bitsandbytes.nn.Linear8bitLt`` computes.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, threshold: float
    ) -> None:
        """``weight`` [out, in] int8; ``scale`` [out] float32, the largest absolute value of each output."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.threshold = threshold
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., in] -> [..., out] in the dtype of ``x``."""
        rows = x.reshape(-1, self.in_features)
        half = rows.half()  # as bitsandbytes does: what overflows is an outlier
        outlier = half.abs() >= self.threshold
        kept = half.masked_fill(outlier, 0).float()
        largest = kept.abs().amax(1)
        codes = torch.round(kept * (127.0 / largest.clamp_min(1e-30))[:, None]).to(torch.int8)
        y: torch.Tensor = torch.ops.bitsandbytes.int8_scaled_mm.default(
            codes, self.weight, largest, self.scale, bias=self.bias, dtype=x.dtype
        )
        columns = outlier.any(0).nonzero().view(-1)
        if len(columns):
            inputs = rows[:, columns].masked_fill(~outlier[:, columns], 0)
            y = y.addmm(inputs, self._dequantized(columns).to(x.dtype).T)
        return y.view(*x.shape[:-1], self.out_features)

    def dequantized(self) -> torch.Tensor:
        """The weight [out, in] float32 that the codes stand for."""
        return self._dequantized(slice(None))

    def _dequantized(self, columns: torch.Tensor | slice) -> torch.Tensor:
        return self.weight[:, columns].float() * (self.scale * (1 / 127.0))[:, None]


class Quantized:
    """A quantized layer as the step takes it: :class:`manylora.server.kernels.weights.QuantizedLayer`."""

    def __init__(self, module: Any) -> None:
        """``module``: an :class:`Int8Linear`, a :class:`CodedLinear` or bitsandbytes' ``Linear4bit``."""
        self._module = module

    @property
    def bias(self) -> torch.Tensor | None:
        return self._module.bias  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        return total_bytes(layer_tensors(self._module))

    def weight(self) -> torch.Tensor:
        if isinstance(self._module, Int8Linear | CodedLinear):
            return self._module.dequantized()
        return dequantize_4bit(self._module)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._module(x)  # type: ignore[no-any-return]


def dequantize_4bit(layer: Any) -> torch.Tensor:
    """The weight [out, in] of a ``bitsandbytes.nn.Linear4bit``, as it is multiplied.

    bitsandbytes lays the codes out anew at the first forward on a CPU with AVX-512 BF16, and its own
    ``dequantize_4bit`` then returns a scrambled weight (0.50.2).
    """
    import bitsandbytes as bnb  # noqa: PLC0415  (slow to import, and an extra)

    state = layer.weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        return bnb.functional.dequantize_4bit(layer.weight.data, state)  # type: ignore[no-any-return]
    outputs, inputs = state.shape
    pairs = layer.weight.data.reshape(-1, _PACKED_OUTPUTS)
    codes = torch.cat([pairs & 0xF, pairs >> 4], dim=1)  # [out/32 · in/2, 32 outputs x 2 inputs]
    codes = codes.view(outputs // _PACKED_OUTPUTS, inputs // 2, _PACKED_OUTPUTS, 2).transpose(1, 2)
    scale: torch.Tensor = state.absmax.T.float().repeat_interleave(state.blocksize, dim=1)
    levels: torch.Tensor = state.code.float()
    return (levels[codes.reshape(outputs, inputs).int()] * scale).to(state.dtype)


def layer_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Everything that takes memory in ``module`` and below it, the scales of 4-bit weights included."""
    yield from module.buffers()
    for layer in module.modules():
        if isinstance(layer, CodedLinear):
            yield from layer.tensors
    for parameter in module.parameters():
        yield parameter.data
        state: Any = getattr(parameter, "quant_state", None)
        if state is not None:
            yield state.absmax
            if state.nested:
                yield state.state2.absmax
