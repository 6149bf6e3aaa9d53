"""Codes of quantized weights in the orders that kernels read: ``src/unpack_*.cpp``, ``codes_apart.h``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F

from manylora.server.kernels.buffers import total_bytes
from manylora.server.kernels.codes import Codes, Kind
from manylora.server.kernels.cpu import abi
from manylora.server.kernels.cpu.huge_pages import Arena

BLOCK = 32  # outputs of a packed block
_GROUP = 16  # inputs: groups are multiples of it
_MODERATE = 2.0**50  # scales up to it, and down to its inverse: products of two are far from float32's ends


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix as the kernels take it, and the memory it lies in."""

    struct: abi.PackedMatrix
    tensors: tuple[torch.Tensor, ...]
    parts: ctypes.Array[abi.PackedMatrix] | None = None  # that the struct points to, of several kinds

    @property
    def nbytes(self) -> int:
        """Bytes its weights, or its codes and scales, take."""
        return total_bytes(self.tensors)


def plain(packed: torch.Tensor, inputs: int) -> Packed:
    """A matrix of bf16 weights that were packed already."""
    blocks = packed.numel() // (BLOCK * inputs)
    return Packed(abi.PackedMatrix(codes=packed.data_ptr(), blocks=blocks, kind=Kind.PLAIN), (packed,))


def unfit(parts: Sequence[Codes | None], interleaved: bool) -> str | None:
    """Why these weights, stacked along out, can't be one matrix of the kernels; None if they can.

    ``interleaved`` ones have outputs of both in a block.
    """
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return "another library's codes"
    for part in known:
        group, inputs = part.group, part.shape[1]
        if part.order is not None:
            return "groups of inputs that do not follow each other"
        if inputs % _GROUP or (group % _GROUP and group < inputs):
            return f"groups of {group} of {inputs} inputs"
    if len({part.layout for part in known}) > 1 and (
        interleaved or any(part.shape[0] % BLOCK for part in known[:-1])
    ):
        return "weights of several kinds in one block"
    return None


def coded_bytes(parts: Sequence[Codes]) -> int:
    """Bytes that :func:`pack_codes` makes of ``parts``, what they are rounded up by included."""
    return sum(_alike_bytes(run) for run in _runs(parts))


def _runs(parts: Sequence[Codes]) -> list[list[Codes]]:
    """The parts in order, those of one layout that follow each other together."""
    return [list(run) for _, run in groupby(parts, key=lambda part: part.layout)]


def _alike_bytes(parts: Sequence[Codes]) -> int:
    outputs, first = sum(part.shape[0] for part in parts), parts[0]
    tensors = (first.packed, first.scales, *(() if first.offsets is None else (first.offsets,)))
    per_output: int = sum(tensor.nbytes for tensor in tensors) // first.shape[0]
    return (outputs + -outputs % BLOCK) * per_output + 3 * 64


def pack_codes(native: ctypes.CDLL, parts: Sequence[Codes], interleaved: bool, arena: Arena) -> Packed:
    """Weights stacked along out, in the order of that library.

    ``interleaved`` ones are two of one layout, the gate's and the up projection's: a block has 16 outputs of
    each.
    """
    runs = _runs(parts)
    if len(runs) == 1:
        return _pack_alike(native, parts, interleaved, arena)
    assert not interleaved, "what is not one layout can't share blocks"
    packed = [_pack_alike(native, run, interleaved, arena) for run in runs]
    structs = (abi.PackedMatrix * len(packed))(*(part.struct for part in packed))
    whole = abi.PackedMatrix(
        codes=ctypes.addressof(structs),
        group=len(packed),
        blocks=sum(part.struct.blocks for part in packed),
        kind=Kind.SEVERAL,
    )
    return Packed(whole, tuple(tensor for part in packed for tensor in part.tensors), structs)


def _pack_alike(native: ctypes.CDLL, parts: Sequence[Codes], interleaved: bool, arena: Arena) -> Packed:
    """Weights of one layout."""
    first = parts[0]
    outputs, inputs = sum(part.shape[0] for part in parts), first.shape[1]
    order = torch.arange(outputs)
    if interleaved:
        order = order.view(2, -1, BLOCK // 2).transpose(0, 1).reshape(-1)

    def blocks(rows: Sequence[torch.Tensor]) -> torch.Tensor:  # [blocks, 32, columns]
        stacked = torch.cat(tuple(rows))[order]
        return F.pad(stacked, (0, 0, 0, -outputs % BLOCK)).view(-1, BLOCK, stacked.shape[1])

    def kept(values: torch.Tensor) -> torch.Tensor:
        memory = arena.take(values.numel(), values.dtype)
        memory.view(values.shape).copy_(values)
        return memory

    if first.kind is Kind.PLAIN:
        return plain(kept(_in_pairs(blocks([part.packed for part in parts]))), inputs)
    packers = _PACKERS_APART if native.manylora_inputs_apart() else _PACKERS
    codes = kept(packers[first.kind](blocks([part.elements() for part in parts])))
    scales = kept(blocks([part.scales for part in parts]).transpose(1, 2))
    offsets = None
    if first.offsets is not None:
        offsets = kept(blocks([part.offsets for part in parts if part.offsets is not None]).transpose(1, 2))
    table = None if first.table is None else first.table.float().contiguous()
    struct = abi.PackedMatrix(
        codes=codes.data_ptr(),
        scales=scales.data_ptr(),
        offsets=None if offsets is None else offsets.data_ptr(),
        table=None if table is None else table.data_ptr(),
        group=min(first.group, inputs),
        blocks=-(-outputs // BLOCK),
        kind=first.kind,
        factor=first.factor,
        moderate=all(_is_moderate(each) for each in (scales, offsets) if each is not None),
    )
    return Packed(struct, tuple(t for t in (codes, scales, offsets, table) if t is not None))


def _is_moderate(values: torch.Tensor) -> bool:
    """Whether all are zero or moderate in magnitude; NaN is not."""
    magnitude = values.abs()
    fits = (magnitude <= _MODERATE) & ((magnitude >= 1 / _MODERATE) | (magnitude == 0))
    return bool(fits.all())


def _in_pairs(elements: torch.Tensor) -> torch.Tensor:
    """Codes [blocks, 32, in] in the order of packed bf16: [blocks, in / 2, 64]."""
    blocks, _, inputs = elements.shape
    pairs: torch.Tensor = elements.view(blocks, BLOCK, inputs // 2, 2).transpose(1, 2)
    return pairs.reshape(blocks, inputs // 2, 2 * BLOCK)


def _nibbles(elements: torch.Tensor) -> torch.Tensor:
    """Of every 32 codes number j in the low bits of byte j, number j + 16 in the high ones."""
    low, high = _in_pairs(elements).unflatten(-1, (2, 2, BLOCK // 2)).unbind(-2)
    both: torch.Tensor = low | (high << 4)
    return both


def _nibbles_apart(elements: torch.Tensor) -> torch.Tensor:
    """Of every two inputs the first in the low bits of bytes, output 8 b + 4 a + c in byte 16 a + 4 b + c."""
    blocks, _, inputs = elements.shape
    steps = elements.view(blocks, 4, 2, 4, inputs // 2, 2).permute(0, 4, 2, 1, 3, 5)
    low, high = steps.reshape(blocks, inputs // 2, BLOCK, 2).unbind(-1)
    both: torch.Tensor = low | (high << 4)
    return both


def _bytes_apart(elements: torch.Tensor) -> torch.Tensor:
    """One input after the other, 32 outputs of each."""
    return elements.transpose(1, 2).contiguous()


_PACKERS: dict[Kind, Callable[[torch.Tensor], torch.Tensor]] = {
    Kind.NIBBLES: _nibbles,
    Kind.SHIFTED: _nibbles,
    Kind.ADDED: _nibbles,
    Kind.BYTES: _in_pairs,
    Kind.ADDED_BYTES: _in_pairs,
}
_PACKERS_APART: dict[Kind, Callable[[torch.Tensor], torch.Tensor]] = {
    Kind.NIBBLES: _nibbles_apart,
    Kind.SHIFTED: _nibbles_apart,
    Kind.ADDED: _nibbles_apart,
    Kind.BYTES: _bytes_apart,
    Kind.ADDED_BYTES: _bytes_apart,
}
