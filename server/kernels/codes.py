"""Weights in few bits, whatever library or file they come from: what their codes stand for.

A weight is computed in float32 by the formula of its kind, operation by operation as written, and rounded
once to the dtype it is multiplied in. A kind is added here by its number and its formula, and beside the
kernels by its packer (``cpu/packed_codes.py``) and its unpack function (``cpu/src/unpack.h`` says how).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F


class Kind(IntEnum):
    """How codes stand for weights; the numbers are those of ``MatrixKind`` in ``cpu/src/abi.h``."""

    PLAIN = 0  # they are the weights
    NIBBLES = 1  # 4 bits: table[code] * scale
    BYTES = 2  # 8 bits with a sign: (code * scale) * factor


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight [out, in] in few bits, row by row."""

    kind: Kind
    packed: torch.Tensor  # [out, in / 2] uint8, an even input's code in the high bits; BYTES: [out, in] int8
    scales: torch.Tensor  # [out, groups] float32
    group: int  # inputs that share a scale; the last group of a row may be shorter
    table: torch.Tensor | None = None  # [16] float32, of NIBBLES
    factor: float = 0.0  # of BYTES
    offsets: torch.Tensor | None = None  # [out, groups] float32, of kinds that have one

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        outputs, width = self.packed.shape
        return outputs, 2 * width if self.kind is Kind.NIBBLES else width

    @property
    def layout(self) -> tuple[object, ...]:
        """What two weights must have in common to be stacked."""
        table = None if self.table is None else tuple(self.table.tolist())
        return self.kind, self.shape[1], self.group, table, self.factor, self.offsets is None

    def tensors(self) -> Iterator[torch.Tensor]:
        """Everything that takes memory."""
        given = (self.packed, self.scales, self.table, self.offsets)
        return (tensor for tensor in given if tensor is not None)

    def elements(self) -> torch.Tensor:
        """One code an element [out, in]: uint8, or int8 of BYTES."""
        if self.kind is Kind.BYTES:
            return self.packed
        return torch.stack([self.packed >> 4, self.packed & 0xF], dim=-1).flatten(1)

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] that the codes stand for, made anew at every call."""
        if self.kind is Kind.BYTES:
            return ((self.packed * self._wide(self.scales)) * self.factor).to(dtype)
        assert self.table is not None
        first, second = self.table.repeat_interleave(16), self.table.repeat(16)  # of both codes of a byte
        values = F.embedding(self.packed.int(), torch.stack([first, second], dim=-1)).flatten(1)
        return values.mul_(self._wide(self.scales)).to(dtype)

    def _wide(self, values: torch.Tensor) -> torch.Tensor:
        """What groups have [out, groups], for each input: [out, in], or [out, 1] where there is one group."""
        inputs = self.shape[1]
        return values if self.group >= inputs else values.repeat_interleave(self.group, 1)[:, :inputs]
