"""Frozen weights of a group of layers: as they are, or kept in 4 bits and multiplied in the base's dtype."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

ROWS = 1024  # of a weight that are squared at a time
SHARE_OF_FREE_MEMORY = 0.25  # that weights of a 4-bit base may take in the base's dtype


class Weight(Protocol):
    """The weights of a group of layers, one below the other."""

    def get(self) -> Tensor:
        """[out, in] in the base's dtype."""
        ...

    def squared_norms(self) -> Tensor:
        """[out] float32: of the rows."""
        ...


class PlainWeight:
    """One matrix; the layers' own weights become views of it, so that nothing is in memory twice."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self._matrix = _joined([layer.weight.detach() for layer in layers])
        self._squares: Tensor | None = None
        parts = self._matrix.split([layer.weight.shape[0] for layer in layers])
        for layer, part in zip(layers, parts, strict=True):
            layer.weight.data = part

    def get(self) -> Tensor:
        return self._matrix

    def squared_norms(self) -> Tensor:
        if self._squares is None:
            self._squares = squared_norms(self._matrix)
        return self._squares


def _joined(weights: Sequence[Tensor]) -> Tensor:
    """The weights as one matrix, which they are already where a decoder was built on them before."""
    first, end = weights[0], weights[0].data_ptr()
    for weight in weights:
        if weight.data_ptr() != end or not weight.is_contiguous():
            return torch.cat(list(weights))
        end += weight.nbytes
    if first.untyped_storage().data_ptr() + first.untyped_storage().nbytes() < end:
        return torch.cat(list(weights))
    rows = sum(len(weight) for weight in weights)
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))


class Nf4Weight:
    """Layers of bitsandbytes in 4 bits: dequantized at each use, or once where ``is_kept``."""

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype, *, is_kept: bool) -> None:
        self._layers = layers
        self._dtype = dtype
        self._matrix = self._dequantized() if is_kept else None
        self._squares: Tensor | None = None

    def get(self) -> Tensor:
        return self._dequantized() if self._matrix is None else self._matrix

    def squared_norms(self) -> Tensor:
        if self._squares is None:
            self._squares = squared_norms(self.get())
        return self._squares

    @torch.no_grad()
    def _dequantized(self) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415  (slow, and only of 4-bit bases)

        parts = [
            dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(self._dtype)
            for layer in self._layers
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def squared_norms(weight: Tensor) -> Tensor:
    """The squared norms of the rows of ``weight`` [out, in], in float32: [out]."""
    parts = (part.float() for part in weight.split(ROWS))
    return torch.cat([torch.linalg.vecdot(part, part) for part in parts])


def is_nf4(layer: Any) -> bool:
    """Whether ``layer`` is bitsandbytes' linear layer in 4 bits."""
    weight = getattr(layer, "weight", None)
    return bool(getattr(weight, "quant_state", None) is not None)


def may_be_kept(layers: Sequence[Any], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether dequantized copies of ``layers`` fit SHARE_OF_FREE_MEMORY of what is free now."""
    needed = sum(layer.in_features * layer.out_features for layer in layers) * dtype.itemsize
    return bool(needed <= SHARE_OF_FREE_MEMORY * _free_bytes(device))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # only Linux tells: elsewhere nothing is kept
        return 0
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
