"""A linear layer that holds codes: it makes its weight anew, some outputs at a time, whenever it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

_CHUNK = 1 << 18  # weights that are made at once: they stay in the cache


class Codes(Protocol):
    """A matrix in few bits."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What it takes memory for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The weights of the outputs ``start : stop``, [n, in], in the dtype they are defined in."""


@dataclass(frozen=True, eq=False)
class PlainCodes:
    """A matrix that its file has in 16 or 32 bits, beside others in fewer."""

    weight: torch.Tensor  # [out, in]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What it takes memory for."""
        return (self.weight,)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        outputs, inputs = self.weight.shape
        return outputs, inputs

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The weights of the outputs ``start : stop``, [n, in]."""
        return self.weight[start:stop]


class CodedLinear(nn.Module):
    """``y = x W^T + b`` with W in codes: each weight rounded once, to the dtype of ``x``."""

    def __init__(self, codes: Codes, bias: torch.Tensor | None) -> None:
        """``bias`` [out], in the dtype the model computes in."""
        super().__init__()
        self.codes = codes
        self.bias = bias
        self.out_features, self.in_features = codes.shape

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What the layer takes memory for."""
        return self.codes.tensors if self.bias is None else (*self.codes.tensors, self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., in] -> [..., out] in the dtype of ``x``."""
        y = x.new_empty(*x.shape[:-1], self.out_features)
        for start, stop in self._chunks():
            bias = None if self.bias is None else self.bias[start:stop].to(x.dtype)
            y[..., start:stop] = F.linear(x, self.codes.rows(start, stop).to(x.dtype), bias)
        return y

    def dequantized(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight [out, in] that the codes stand for, exactly; or each rounded once, to ``dtype``."""
        parts = [self.codes.rows(start, stop) for start, stop in self._chunks()]
        return torch.cat([part if dtype is None else part.to(dtype) for part in parts])

    def _chunks(self) -> list[tuple[int, int]]:
        """Runs of outputs with no more than :data:`_CHUNK` weights."""
        step = max(1, _CHUNK // self.in_features)
        return [(start, min(start + step, self.out_features)) for start in range(0, self.out_features, step)]
