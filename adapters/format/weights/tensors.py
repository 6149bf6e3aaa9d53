"""Reading ``adapter_model.safetensors`` from a stranger: every byte is accounted for before it is used.

The format (https://github.com/huggingface/safetensors#format): 8 bytes of header length, a JSON header
``{name: {dtype, shape, data_offsets}}``, then the data. It is parsed here rather than by the library
because the bytes must be read exactly once, for the digest and for the tensors, and because a fault
has to name the tensor.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from manylora.adapters.format.faults import Faults, shown
from manylora.adapters.format.files import FileFault, open_regular, parse_json_object, read_into

MAX_DIMENSIONS = 8
_LENGTH_BYTES = 8
_MAX_SIZE = 1 << 48
_CHUNK = 1 << 18  # elements tested for NaN at a time, so that the scratch stays in the cache


@dataclass(frozen=True, slots=True)
class _Format:
    """How a float dtype is stored, and the smallest doubled bit pattern that is an infinity or a NaN."""

    dtype: torch.dtype
    bits: type[np.unsignedinteger[Any]]
    not_finite: int

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize


# Shifting the sign bit out leaves exponent and mantissa; all ones in the exponent is Inf or NaN.
_FORMATS: Mapping[str, _Format] = {
    "F32": _Format(torch.float32, np.uint32, 0xFF000000),
    "F16": _Format(torch.float16, np.uint16, 0xF800),
    "BF16": _Format(torch.bfloat16, np.uint16, 0xFF00),
}
# Of indices, which some kinds of adapters save.
_INTEGERS = {"U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
# Bytes an element of the format's other types takes: enough to tell "not served" from "damaged".
_UNSERVED = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}


class TensorInfo(NamedTuple):
    """One entry of the header: a tensor at ``data[start:end]``."""

    name: str
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the data
    end: int


class TensorFile:
    """The tensors of one file, in memory. ``data`` is None if it was too large to be read."""

    def __init__(self, infos: Mapping[str, TensorInfo], data: torch.Tensor | None) -> None:
        self.infos = infos
        self._data = data  # [bytes] uint8

    @property
    def complete(self) -> bool:
        """Whether the tensors' values were read, not the header alone."""
        return self._data is not None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the file, as stored."""
        return sum(info.end - info.start for info in self.infos.values())

    def can_read(self, name: str) -> bool:
        """Whether the file has a tensor of that name, in a type that is served."""
        return name in self.infos and self.infos[name].dtype in _FORMATS

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor, as a view of the file's bytes where their alignment allows it."""
        info = self.infos[name]
        dtype = _INTEGERS[info.dtype] if self.holds_integers(name) else _FORMATS[info.dtype].dtype
        part = self._bytes(info.start, info.end)
        if info.start % dtype.itemsize:
            part = part.clone()
        return part.view(dtype).view(info.shape)

    def holds_integers(self, name: str) -> bool:
        """Whether the tensor holds integers rather than floats."""
        return self.infos[name].dtype in _INTEGERS

    def holds_only(self, name: str, value: float) -> bool:
        """Whether all elements of the tensor are ``value``; false of types that are not served."""
        if self.infos[name].dtype not in _FORMATS:
            return False
        tensor = self.tensor(name)
        return not bool(tensor.any() if value == 0 else (tensor != value).any())

    def not_finite(self) -> list[str]:
        """Names of the tensors that hold NaN or infinity."""
        if all(self._finite(*run) for run in self._runs()):
            return []
        return [i.name for i in self._served() if not self._finite(i.dtype, i.start, i.end)]

    def _served(self) -> list[TensorInfo]:
        return [info for info in self.infos.values() if info.dtype in _FORMATS]

    def _runs(self) -> Iterator[tuple[str, int, int]]:
        """Neighbouring tensors of one dtype as one span: a few tests instead of one a tensor."""
        infos = sorted(self._served(), key=lambda info: info.start)
        first = 0
        for index in range(1, len(infos) + 1):
            last = infos[index - 1]
            if (
                index == len(infos)
                or infos[index].dtype != infos[first].dtype
                or infos[index].start != last.end
            ):
                yield infos[first].dtype, infos[first].start, last.end
                first = index

    def _finite(self, dtype: str, start: int, end: int) -> bool:
        form = _FORMATS[dtype]
        raw = self._bytes(start, end).numpy()
        values: npt.NDArray[Any] = (raw.copy() if start % form.itemsize else raw).view(form.bits)
        scratch = np.empty(min(_CHUNK, len(values)), form.bits)
        for begin in range(0, len(values), _CHUNK):
            chunk = values[begin : begin + _CHUNK]
            doubled = np.left_shift(chunk, 1, out=scratch[: len(chunk)])
            if doubled.max() >= form.not_finite:
                return False
        return True

    def _bytes(self, start: int, end: int) -> torch.Tensor:
        assert self._data is not None, "the values were not read"
        return self._data[start:end]


def read_tensors(
    path: Path,
    digest: hashlib._Hash,
    faults: Faults,
    *,
    max_header: int,
    max_bytes: int,
    indices: Collection[str] = (),
) -> TensorFile | None:
    """Read a safetensors file once, feeding every byte to ``digest``; None if it can't be used.

    Only the tensors named in ``indices`` may hold integers. A file with more than ``max_bytes`` of tensors
    is a fault, and only its header is read then.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            header = _read_header(file, path.name, size, max_header, digest)
            infos = _check_header(header, path.name, size - file.tell(), faults, indices)
            if infos is None:
                return None
            rest = size - file.tell()
            data = _read_data(file, path.name, rest, max_bytes=max_bytes, digest=digest, faults=faults)
    except FileFault as fault:
        faults.add(str(fault))
        return None
    return TensorFile(infos, data)


def _read_header(
    file: BinaryIO, name: str, size: int, max_header: int, digest: hashlib._Hash
) -> dict[str, Any]:
    prefix = bytearray(_LENGTH_BYTES)
    read_into(file, memoryview(prefix), name)
    length = int.from_bytes(prefix, "little")
    if length > size - _LENGTH_BYTES:
        raise FileFault(f"{name} is truncated or not a safetensors file: its header does not fit in it")
    if length > max_header:
        raise FileFault(
            f"the header of {name} has {length:,} bytes, "
            f"more than any adapter of this base needs ({max_header:,})"
        )
    header = bytearray(length)
    read_into(file, memoryview(header), name)
    digest.update(prefix)
    digest.update(header)
    return parse_json_object(bytes(header), f"the header of {name}")


def _read_data(
    file: BinaryIO, name: str, size: int, *, max_bytes: int, digest: hashlib._Hash, faults: Faults
) -> torch.Tensor | None:
    if size > max_bytes:
        faults.add(f"{name} holds {size:,} bytes of tensors; the limit is {max_bytes:,}")
        return None
    data = torch.empty(size, dtype=torch.uint8)
    view = memoryview(data.numpy().data)
    read_into(file, view, name)
    digest.update(view)
    return data


def _check_header(
    header: dict[str, Any], file_name: str, size: int, faults: Faults, indices: Collection[str]
) -> dict[str, TensorInfo] | None:
    """The entries, if they are well formed and tile the ``size`` bytes of data without hole or overlap."""
    before = len(faults)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        faults.add(f"__metadata__ in {file_name} must map strings to strings")
    infos = {}
    for name, entry in header.items():
        try:
            infos[name] = _check_entry(name, entry)
        except FileFault as fault:
            faults.add(f"tensor {shown(name)} {fault}")
    if len(faults) != before:
        return None
    unserved = sorted(
        {i.dtype for i in infos.values() if not (i.name in indices and i.dtype in _INTEGERS)}
        - _FORMATS.keys()
    )
    if unserved:
        faults.add(f"{file_name} has tensors of {', '.join(unserved)}: served are {', '.join(_FORMATS)}")
    end = 0
    for info in sorted(infos.values(), key=lambda info: (info.start, info.end)):
        if info.start != end:
            faults.add(f"tensor {shown(info.name)} does not start where the one before it ends ({file_name})")
            return None
        end = info.end
    if end != size:
        what = "is truncated" if end > size else "has bytes that belong to no tensor"
        faults.add(f"{file_name} {what}: its tensors take {end:,} bytes, it holds {size:,}")
        return None
    return infos


def _check_entry(name: str, entry: object) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FileFault("must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in _FORMATS and dtype not in _UNSERVED):
        raise FileFault(f"has the unknown dtype {shown(dtype)}")
    itemsize = _FORMATS[dtype].itemsize if dtype in _FORMATS else _UNSERVED[dtype]
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise FileFault(f"has the impossible shape {shown(shape)}")
    if not _sizes(offsets) or len(offsets) != 2:
        raise FileFault(f"has the impossible data_offsets {shown(offsets)}")
    start, end = offsets
    if end - start != math.prod(shape) * itemsize:
        raise FileFault(f"has {end - start} bytes for shape {shown(shape)} of {dtype}")
    return TensorInfo(name, dtype, tuple(shape), start, end)


def _sizes(value: object) -> bool:
    """Whether ``value`` is a list of integers that can be sizes (a bool is not one)."""
    if not isinstance(value, list):
        return False
    for item in value:  # noqa: SIM110 - twice as fast as all(), and this runs for every tensor
        if type(item) is not int or not 0 <= item < _MAX_SIZE:
            return False
    return True
