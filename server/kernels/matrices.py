"""The matrices of a base: dense ones, and quantized ones that stand for several layers' codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from manylora.server.kernels.codes import Codes


class QuantizedLayer(Protocol):
    """One linear layer of a quantized base."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    def codes(self) -> Codes | None:
        """What the layer stores; None where only another library can read it."""

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's bias b [out], or None."""

    @property
    def nbytes(self) -> int:
        """Bytes its codes and scales take."""

    @property
    def waits(self) -> bool:
        """Whether a product may wait for the device, or ask it for anything."""

    def weight(self) -> torch.Tensor:
        """W [out, in] that the codes stand for, made anew at every call."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``W x + b`` of rows ``x`` [T, in], in the dtype of ``x``."""


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A matrix of a quantized base: layers stacked along out, each with its own codes, scales and bias."""

    parts: tuple[QuantizedLayer, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that the codes and scales of the matrix take."""
        return sum(part.nbytes for part in self.parts)

    @property
    def waits(self) -> bool:
        """Whether a product may wait for the device."""
        return any(part.waits for part in self.parts)

    def bias(self) -> torch.Tensor | None:
        """The biases along out, zeros for a part that has none; None if none has."""
        given = next((part.bias for part in self.parts if part.bias is not None), None)
        if given is None:
            return None
        none = [given.new_zeros(part.shape[0]) for part in self.parts]
        return torch.cat(
            [z if part.bias is None else part.bias for part, z in zip(self.parts, none, strict=True)]
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product of the rows ``x`` with the matrix, biases added: [T, in] -> [T, out]."""
        outputs = [part(x) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


Matrix = torch.Tensor | QuantizedMatrix


def codes_of(matrix: QuantizedMatrix) -> list[Codes]:
    """The codes of each part, which are known to be there."""
    found = [part.codes for part in matrix.parts]
    codes = [codes for codes in found if codes is not None]
    assert len(codes) == len(found)
    return codes


def dense(matrix: Matrix) -> torch.Tensor:
    """``matrix``, which is known not to be quantized."""
    assert isinstance(matrix, torch.Tensor)
    return matrix
