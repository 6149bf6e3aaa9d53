"""Reading a GGUF file from a stranger: every count, length and offset is checked before it is followed.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The library's reader is for files that
one trusts: it makes a Python object of every element of every array, and its sizes overflow.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from manylora.adapters.format.faults import shown
from manylora.adapters.format.files import FileFault, open_regular, read_into

MAGIC = b"GGUF"
MAX_HEADER = 16 << 20  # bytes of metadata and tensor entries, of an adapter
MAX_ENTRIES = 65536  # of tensors, and of metadata
MAX_KEPT = 1024  # elements of an array that is kept; of longer ones only the length is looked at
_MAX_DIMENSIONS = 4
_MAX_SIZE = 1 << 40
_MAX_ALIGNMENT = 1 << 16
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
PLAIN: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Metadata = Mapping[str, Any]  # numbers, strings, and short lists of these


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """An entry of the header: where a tensor lies, and how it is stored."""

    name: str
    kind: str  # GGML's name of the type: "F32", "Q8_0", ...
    shape: tuple[int, ...]  # as PyTorch has it: the file's the other way round
    start: int  # bytes from the beginning of the file
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself, and of its tensors."""

    metadata: Metadata
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path, max_bytes: int) -> tuple[Metadata, dict[str, torch.Tensor], bool]:
    """The metadata and the tensors of a file, and whether any was dequantized (to float32).

    Raises:
        FileFault: the file is damaged, is no GGUF file, holds more than ``max_bytes``, or a type that can't
            be dequantized.
    """
    with open_regular(path) as file:
        header = read_gguf_header(file, path.name)
        taken = sum(_bytes_in_memory(tensor) for tensor in header.tensors.values())
        if taken > max_bytes:
            raise FileFault(f"{path.name} holds {taken:,} bytes of tensors; the limit is {max_bytes:,}")
        tensors = {name: read_tensor(file, path.name, entry) for name, entry in header.tensors.items()}
    return header.metadata, tensors, any(t.kind not in PLAIN for t in header.tensors.values())


def read_gguf_header(
    file: BinaryIO, name: str, *, whole: Container[str] = (), max_bytes: int = MAX_HEADER
) -> GgufHeader:
    """What the file says of itself and its tensors, whose values are not read.

    Args:
        file: positioned at its beginning.
        name: what messages call it.
        whole: the arrays that are kept however long they are.
        max_bytes: of metadata and tensor entries.

    Raises:
        FileFault: it is damaged, or no GGUF file.
    """
    size = os.fstat(file.fileno()).st_size
    start = bytearray(min(size, max_bytes))
    read_into(file, memoryview(start), name)
    reader = _Reader(bytes(start), name)
    if reader.take(4) != MAGIC:
        raise FileFault(f"{name} is not a GGUF file")
    version = reader.number("I")
    if version not in _VERSIONS:
        raise FileFault(f"{name} is of GGUF version {shown(version)}: read are {_VERSIONS}, in little-endian")
    tensors, entries = reader.count("tensors"), reader.count("entries of metadata")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = reader.string()
        if key in metadata:
            raise FileFault(f"{name} has the metadata {shown(key)} twice")
        metadata[key] = reader.value(reader.number("I"), keep=key in whole)
    found = [_entry(reader) for _ in range(tensors)]
    data = _aligned(reader.place, _alignment(metadata, name))
    return GgufHeader(metadata, _placed(found, data, size, metadata, name))


class _Reader:
    """Reads the header from memory; whatever would go beyond it is a fault."""

    def __init__(self, content: bytes, name: str) -> None:
        self._content = content
        self._name = name
        self.place = 0

    def take(self, count: int) -> bytes:
        if count > len(self._content) - self.place:
            raise FileFault(
                f"{self._name} is truncated, or its header has more than {len(self._content):,} bytes"
            )
        part = self._content[self.place : self.place + count]
        self.place += count
        return part

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, what: str) -> int:
        number: int = self.number("Q")
        if number > MAX_ENTRIES:
            raise FileFault(f"{self._name} has {number:,} {what}; the limit is {MAX_ENTRIES:,}")
        return number

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeError:
            raise FileFault(f"{self._name} has a name or a text that is not valid UTF-8") from None

    def value(self, kind: int, *, keep: bool) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(keep)
        raise FileFault(f"{self._name} has metadata of the unknown type {shown(kind)}")

    def _array(self, keep: bool) -> list[Any] | None:
        """The elements of a short array, or of one to ``keep``; else None. Nobody has arrays of arrays."""
        kind, length = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            code = _SCALARS[kind]
            packed = self.take(length * struct.calcsize(f"<{code}"))
            return list(struct.unpack(f"<{length}{code}", packed)) if keep or length <= MAX_KEPT else None
        if kind != _STRING:
            raise FileFault(f"{self._name} has an array of the unknown type {shown(kind)}")
        kept = []
        for index in range(length):  # ends with the header: each takes eight bytes at least
            text = self.take(self.number("Q"))
            if keep or index < MAX_KEPT:
                kept.append(text.decode("utf-8", "replace"))
        return kept if keep or length <= MAX_KEPT else None


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, number of the type and offset."""
    name, dimensions = reader.string(), reader.number("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise FileFault(f"tensor {shown(name)} has {dimensions} dimensions")
    shape = tuple(reader.number("Q") for _ in range(dimensions))
    if any(not 0 < size < _MAX_SIZE for size in shape) or math.prod(shape) >= _MAX_SIZE:
        raise FileFault(f"tensor {shown(name)} has the impossible shape {shown(list(shape))}")
    return name, tuple(reversed(shape)), reader.number("I"), reader.number("Q")


def _alignment(metadata: Metadata, name: str) -> int:
    alignment = metadata.get("general.alignment", 32)
    good = type(alignment) is int and 0 < alignment <= _MAX_ALIGNMENT and alignment & (alignment - 1) == 0
    if not good:
        raise FileFault(f"{name} has the impossible general.alignment {shown(alignment)}")
    return int(alignment)


def _aligned(place: int, alignment: int) -> int:
    return (place + alignment - 1) // alignment * alignment


def _placed(
    entries: list[tuple[str, tuple[int, ...], int, int]], data: int, size: int, metadata: Metadata, name: str
) -> dict[str, GgufTensor]:
    """The entries by name, none of which lies outside the file or over another."""
    tensors: dict[str, GgufTensor] = {}
    for tensor, shape, kind, offset in entries:
        if tensor in tensors:
            raise FileFault(f"{name} has the tensor {shown(tensor)} twice")
        known, block, block_bytes = _type(kind, tensor)
        if shape[-1] % block:
            raise FileFault(f"tensor {shown(tensor)}: rows of {shape[-1]} are no blocks of {known} ({block})")
        start = data + offset
        end = start + math.prod(shape) // block * block_bytes
        if offset % _alignment(metadata, name) or end > size:
            raise FileFault(f"tensor {shown(tensor)} does not lie in {name}, which is truncated or damaged")
        tensors[tensor] = GgufTensor(tensor, known, shape, start, end)
    last = 0
    for placed in sorted(tensors.values(), key=lambda each: each.start):
        if placed.start < last:
            raise FileFault(f"tensor {shown(placed.name)} lies over another one in {name}")
        last = placed.end
    return tensors


def _type(kind: int, tensor: str) -> tuple[str, int, int]:
    """A type's name, how many numbers make a block of it, and the bytes of one."""
    import gguf  # noqa: PLC0415  (slow to import)

    try:
        known = gguf.GGMLQuantizationType(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[known]
    except (ValueError, KeyError):
        raise FileFault(f"tensor {shown(tensor)} is of the unknown type {shown(kind)}") from None
    return str(known.name), int(block), int(block_bytes)


def _bytes_in_memory(tensor: GgufTensor) -> int:
    return math.prod(tensor.shape) * (PLAIN[tensor.kind].itemsize if tensor.kind in PLAIN else 4)


def read_tensor(file: BinaryIO, name: str, entry: GgufTensor) -> torch.Tensor:
    """The values of a tensor, in the dtype it is stored in, or dequantized to float32.

    Raises:
        FileFault: the file ends before it, or its type can't be dequantized.
    """
    raw = read_blocks(file, name, entry)
    if entry.kind in PLAIN:
        return torch.frombuffer(raw, dtype=PLAIN[entry.kind]).view(entry.shape)
    return _dequantized(raw, entry)


def read_blocks(file: BinaryIO, name: str, entry: GgufTensor) -> bytearray:
    """The bytes of a tensor as they are stored.

    Raises:
        FileFault: the file ends before them.
    """
    raw = bytearray(entry.end - entry.start)
    file.seek(entry.start)
    read_into(file, memoryview(raw), name)
    return raw


def _dequantized(raw: bytearray, entry: GgufTensor) -> torch.Tensor:
    import gguf  # noqa: PLC0415  (slow to import)

    rows = np.frombuffer(raw, np.uint8).reshape(*entry.shape[:-1], -1)
    try:
        with np.errstate(all="ignore"):  # scales that are no numbers are found with the values
            values = gguf.dequantize(rows, gguf.GGMLQuantizationType[entry.kind])
    except NotImplementedError:
        raise FileFault(f"tensor {shown(entry.name)} is of type {entry.kind}, which is not read") from None
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).view(entry.shape)
