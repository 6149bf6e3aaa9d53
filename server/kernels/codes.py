"""Weights in few bits, whatever library or file they come from: what their codes stand for.

A weight is computed in float32 by the formula of its kind, operation by operation as written, and rounded
once to the dtype it is multiplied in. A kind is added here by its number and its formula, and beside the
kernels by its packers (``cpu/packed_codes.py``) and unpack functions (``cpu/src/unpack.h`` says how).
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
    SHIFTED = 3  # 4 bits: (table[code] - offset) * scale
    ADDED = 4  # 4 bits: table[code] * scale + offset
    ADDED_BYTES = 5  # 8 bits with a sign: code * scale + offset
    SEVERAL = 6  # matrices of several kinds along out: of none of them alone


WIDE = frozenset({Kind.PLAIN, Kind.BYTES, Kind.ADDED_BYTES})  # with a code an element
OFFSET = frozenset({Kind.SHIFTED, Kind.ADDED, Kind.ADDED_BYTES})
PLACES = torch.arange(16, dtype=torch.float32)  # the table of 4-bit codes that are numbers


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight [out, in] in few bits, row by row."""

    kind: Kind
    # [out, in / 2] uint8, an even input's code in the high bits; of kinds with bytes [out, in] int8; of PLAIN
    # the weight [out, in].
    packed: torch.Tensor
    scales: torch.Tensor  # [out, groups] float32; [out, 0] of PLAIN
    group: int  # inputs that share a scale; the last group of a row may be shorter
    table: torch.Tensor | None = None  # [16] float32, of kinds with 4 bits
    factor: float = 0.0  # of BYTES
    offsets: torch.Tensor | None = None  # [out, groups] float32, of kinds that have one
    order: torch.Tensor | None = None  # [in] the group of each input; None: they follow each other

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        outputs, width = self.packed.shape
        return outputs, width if self.kind in WIDE else 2 * width

    @property
    def layout(self) -> tuple[object, ...]:
        """What two weights must have in common to be stacked."""
        table = None if self.table is None else tuple(self.table.tolist())
        return self.kind, self.shape[1], self.group, table, self.factor, self.offsets is None

    def tensors(self) -> Iterator[torch.Tensor]:
        """Everything that takes memory."""
        given = (self.packed, self.scales, self.table, self.offsets, self.order)
        return (tensor for tensor in given if tensor is not None)

    def elements(self) -> torch.Tensor:
        """One code an element [out, in]: uint8, or as ``packed`` is of kinds that have them so."""
        if self.kind in WIDE:
            return self.packed
        return torch.stack([self.packed >> 4, self.packed & 0xF], dim=-1).flatten(1)

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out, in] that the codes stand for, made anew at every call."""
        if self.kind is Kind.PLAIN:
            return self.packed.to(dtype)
        scales = self._wide(self.scales)
        if self.kind is Kind.BYTES:
            return ((self._by_group(self.packed) * scales) * self.factor).view(self.shape).to(dtype)
        offsets = None if self.offsets is None else self._wide(self.offsets)
        if self.kind is Kind.ADDED_BYTES:
            assert offsets is not None
            return (self._by_group(self.packed) * scales).add_(offsets).view(self.shape).to(dtype)
        assert self.table is not None
        first, second = self.table.repeat_interleave(16), self.table.repeat(16)  # of both codes of a byte
        values = F.embedding(self.packed.int(), torch.stack([first, second], dim=-1)).flatten(1)
        grouped = self._by_group(values)  # the same memory
        if self.kind is Kind.NIBBLES:
            grouped.mul_(scales)
            return values.to(dtype)
        assert offsets is not None
        if self.kind is Kind.SHIFTED:
            grouped.sub_(offsets).mul_(scales)
        else:
            grouped.mul_(scales).add_(offsets)
        return values.to(dtype)

    @property
    def _regular(self) -> bool:
        """Whether a row consists of whole groups that follow each other."""
        return self.order is None and self.shape[1] % min(self.group, self.shape[1]) == 0

    def _by_group(self, values: torch.Tensor) -> torch.Tensor:
        """Of each input [out, in] what meets :meth:`_wide`."""
        return values.view(len(values), self.scales.shape[1], -1) if self._regular else values

    def _wide(self, values: torch.Tensor) -> torch.Tensor:
        """What groups have [out, groups]: [out, groups, 1], or [out, in] where they are not regular.

        Repeating it for each input takes many times as long as everything else.
        """
        if self._regular:
            return values[..., None]
        if self.order is not None:
            return values.index_select(1, self.order)
        return values.repeat_interleave(self.group, 1)[:, : self.shape[1]]
