"""Linear layers of a quantized base: products with the weights that their codes stand for.

Nothing else is rounded: the weight is dequantized to the dtype that the model is served in, activations stay
as they are. So a row's result depends on no other row, and every path multiplies by the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from manylora.server.kernels.buffers import total_bytes
from manylora.server.kernels.codes import Codes

Dequantize = Callable[[Codes, torch.dtype], torch.Tensor]  # what :meth:`Codes.weight` computes


class Product(Protocol):
    """Multiplies by codes without making the weight."""

    most_rows: int  # for which that is the better way

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x W^T + b`` [T, out] of ``x`` [T, in], by the weights rounded to its dtype."""


class CodedLinear(nn.Module):
    """``y = x W^T + b``, W dequantized at every call, or multiplied from its codes where that is given."""

    bias: torch.Tensor | None

    def __init__(
        self,
        codes: Codes,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        dequantize: Dequantize = Codes.weight,
        product: Product | None = None,
    ) -> None:
        """``bias`` [out]; ``dtype`` is what weights are rounded to; ``product`` takes inputs of it."""
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.codes: Codes | None = codes
        self.dtype = dtype
        self._dequantize = dequantize
        self._product = product
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., in] -> [..., out] in the dtype of ``x``."""
        product, rows = self._product, x.numel() // x.shape[-1]
        if product is not None and x.dtype == self.dtype and 0 < rows <= product.most_rows:
            return product(x.reshape(rows, -1)).view(*x.shape[:-1], -1)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight_of_codes().to(x.dtype), bias)

    def weight_of_codes(self) -> torch.Tensor:
        """The weight [out, in] that is multiplied by, made anew."""
        assert self.codes is not None, "the codes were dropped"
        return self._dequantize(self.codes, self.dtype)

    def drop(self) -> None:
        """Let go of the codes: the layer can't run any more."""
        self.codes = self._product = None


class Quantized:
    """A quantized layer as the step takes it: :class:`manylora.server.kernels.matrices.QuantizedLayer`."""

    def __init__(self, module: Any) -> None:
        """``module``: a :class:`CodedLinear` or, on a GPU, bitsandbytes' ``Linear4bit``."""
        self.module = module
        self.shape: tuple[int, int] = (module.out_features, module.in_features)

    @property
    def bias(self) -> torch.Tensor | None:
        return self.module.bias  # type: ignore[no-any-return]

    @property
    def codes(self) -> Codes | None:
        return self.module.codes if isinstance(self.module, CodedLinear) else None

    @property
    def nbytes(self) -> int:
        return total_bytes(layer_tensors(self.module))

    @property
    def waits(self) -> bool:
        return not isinstance(self.module, CodedLinear)  # of another library it is not known

    def weight(self) -> torch.Tensor:
        return dequantized(self.module)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)  # type: ignore[no-any-return]


def dequantized(layer: Any) -> torch.Tensor:
    """The weight [out, in] that a :class:`CodedLinear`, or bitsandbytes' ``Linear4bit``, multiplies by."""
    if isinstance(layer, CodedLinear):
        return layer.weight_of_codes()
    import bitsandbytes as bnb  # noqa: PLC0415  (slow to import, and an extra)

    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)  # type: ignore[no-any-return]


def layer_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Everything that takes memory in ``module`` and below it, the scales of 4-bit weights included."""
    yield from module.buffers()
    for layer in module.modules():
        if isinstance(layer, CodedLinear) and layer.codes is not None:
            yield from layer.codes.tensors()
    for parameter in module.parameters():
        yield parameter.data
        state: Any = getattr(parameter, "quant_state", None)
        if state is not None:
            yield state.absmax
            if state.nested:
                yield state.state2.absmax
