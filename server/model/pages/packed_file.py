"""A packed adapter as a file beside its revision: to bring it in again takes one read, and no laying out.

Nothing depends on the file. It can be deleted at any time, and one that is damaged, or was written for other
weights, another dtype or another layout, counts as none: the adapter is read and packed once more then. Its
checksum tells damage, not malice: who can write to the artifact directory decides what is served from there.

    8 bytes     checksum of all that follows, little endian (see :func:`_checksum`)
    8 bytes     length of the header, little endian
    header      JSON: what it is of, and :class:`PackedAdapter` without the data; padded with spaces
    data        as it lies in the pool, from a multiple of 64 bytes on
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manylora.adapters.format.base import TargetModule
from manylora.adapters.format.files import FileFault, open_regular, read_into
from manylora.server.kernels.buffers import ReusedMemory
from manylora.server.kernels.inputs import (
    PAGE_ALIGN,
    ClassPages,
    PromptPages,
    TablePages,
    VectorPages,
    VocabularyPages,
)
from manylora.server.model.pages.pool import PackedAdapter

LAYOUT = 5  # of pages in the pool and of this file: a change of either takes the next number
PREFIX = "packed-"
_WORD = 8
_ALIGN = 64
_MOST_HEADER = 1 << 24  # bytes
_SUMMED = (64, 512)  # words of 8 bytes that are added up, and how many such sums are made at a time


@dataclass(frozen=True)
class Packing:
    """What packed bytes depend on, beside the revision."""

    key: str
    dtype: torch.dtype

    @classmethod
    def of(
        cls, modules: Sequence[TargetModule], weights_key: str, dtype: torch.dtype, ranks: int = 1
    ) -> Packing:
        """For a pool of ``modules`` and ``dtype`` on the base whose weights are called ``weights_key``.

        It is divided among ``ranks``.
        """
        shapes = hashlib.sha256(repr(tuple(modules)).encode()).hexdigest()
        divided = f" {ranks}" if ranks > 1 else ""
        return cls(f"{LAYOUT} {PAGE_ALIGN} {weights_key} {dtype} {shapes}{divided}", dtype)

    @property
    def file_name(self) -> str:
        """How the file is called; packings of one revision lie beside each other."""
        return PREFIX + hashlib.sha256(self.key.encode()).hexdigest()[:16]


def serialize(packed: PackedAdapter, packing: Packing) -> list[bytes | memoryview]:
    """The parts of the file, one after the other."""
    content = {"digest": packed.digest, "packing": packing.key, **_header(packed)}
    header = json.dumps(content, separators=(",", ":")).encode()
    header += b" " * (-(2 * _WORD + len(header)) % _ALIGN)
    head = len(header).to_bytes(_WORD, "little") + header
    data = memoryview(packed.data.view(torch.uint8).numpy().data)
    checksum = _checksum(memoryview(head), data)
    return [checksum.to_bytes(_WORD, "little"), head, data]


def read_packed(
    directory: Path, digest: str, packing: Packing, max_bytes: int, memory: ReusedMemory
) -> PackedAdapter | None:
    """The revision in ``directory`` as it was packed; None if that was not kept, or not whole.

    ``max_bytes`` bounds the data, which lies in ``memory``. Apart from parsing the header, other Python
    threads run meanwhile.
    """
    try:
        with open_regular(directory / packing.file_name) as file:
            size = os.fstat(file.fileno()).st_size
            if not 2 * _WORD <= size <= max_bytes + _MOST_HEADER:
                return None
            content = memory.take(size)
            view = memoryview(content.numpy().data)
            read_into(file, view, packing.file_name)
    except FileFault:
        return None
    end = 2 * _WORD + int.from_bytes(view[_WORD : 2 * _WORD], "little")
    if _checksum(view[_WORD:end], view[end:]) != int.from_bytes(view[:_WORD], "little"):
        return None
    header: dict[str, Any] = json.loads(bytes(view[2 * _WORD : end]))
    if (header["digest"], header["packing"]) != (digest, packing.key):
        return None
    return _adapter(digest, content[end:].view(packing.dtype), header)


def _checksum(head: memoryview, data: memoryview) -> int:
    """CRC-32 of the header and of sums of the data's words.

    A CRC of the data itself takes longer than reading it does. What is lost: two changes whose words were
    added into one sum and cancel each other.
    """
    words, sums = _SUMMED
    whole = len(data) // (8 * words * sums) * (8 * words * sums)
    added = np.frombuffer(data[:whole], "<u8").reshape(-1, words, sums).sum(axis=1)
    return zlib.crc32(data[whole:], zlib.crc32(added, zlib.crc32(head)))


def _header(packed: PackedAdapter) -> dict[str, Any]:
    vectors, vocabulary = packed.vectors, packed.vocabulary
    return {
        "offset": packed.offset.tolist(),
        "rank": packed.rank.tolist(),
        "stated_rank": packed.stated_rank,
        "activation": packed.activation,
        "prompt": None if packed.prompt is None else asdict(packed.prompt),
        "vectors": None
        if vectors is None
        else {name: table.tolist() for name, table in vars(vectors).items()},
        "vocabulary": None
        if vocabulary is None
        else {
            "size": vocabulary.size,
            "embedding": _table_header(vocabulary.embedding),
            "head": _table_header(vocabulary.head),
            "classes": None if vocabulary.classes is None else asdict(vocabulary.classes),
        },
    }


def _table_header(pages: TablePages | None) -> dict[str, Any] | None:
    if pages is None:
        return None
    return {
        "tokens": pages.tokens.tolist(),
        "rows": pages.rows,
        "rank": pages.rank,
        "a": pages.a,
        "b": pages.b,
    }


def _adapter(digest: str, data: torch.Tensor, header: Mapping[str, Any]) -> PackedAdapter:
    activation, vectors, vocabulary = header["activation"], header["vectors"], header["vocabulary"]
    return PackedAdapter(
        digest,
        data,
        np.array(header["offset"], np.int64),
        np.array(header["rank"], np.int32),
        None if activation is None else tuple(activation),
        None
        if vectors is None
        else VectorPages(**{name: np.array(table, np.int64) for name, table in vectors.items()}),
        None if vocabulary is None else _vocabulary(vocabulary),
        header["stated_rank"],
        None if header["prompt"] is None else PromptPages(**header["prompt"]),
    )


def _vocabulary(header: Mapping[str, Any]) -> VocabularyPages:
    classes = header["classes"]
    return VocabularyPages(
        header["size"],
        _table(header["embedding"]),
        _table(header["head"]),
        None if classes is None else ClassPages(**classes),
    )


def _table(header: Mapping[str, Any] | None) -> TablePages | None:
    if header is None:
        return None
    return TablePages(**{**header, "tokens": np.array(header["tokens"], np.int64)})
