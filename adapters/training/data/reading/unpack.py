"""Compressed files to their content, by what they begin with."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

from manylora.adapters.training.data.faults import Findings

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")


def unpack(path: Path, content: bytes, findings: Findings) -> bytes | None:
    """What ``content`` unpacks to, or itself where it is not compressed; None: it is broken, a fault."""
    for name, (magic, read) in _KINDS.items():
        if not content.startswith(magic):
            continue
        try:
            return read(content)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            findings.fault(path, 0, f"is compressed ({name}) and can't be unpacked: {error}")
            return None
    if content.startswith(b"PK\x03\x04"):
        findings.fault(path, 0, "is compressed (zip): unpack it first, or use gzip")
        return None
    return content


def _zstd(content: bytes) -> bytes:
    """Through Arrow, which the trainer has anyway; Python reads the format itself from 3.14 on."""
    import pyarrow  # noqa: PLC0415  (slow, and only for this)

    with pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd") as stream:
        return bytes(stream.read())


_KINDS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"\x1f\x8b", gzip.decompress),
    "bzip2": (b"BZh", bz2.decompress),
    "xz": (b"\xfd7zXZ\x00", lzma.decompress),
    "zstd": (b"\x28\xb5\x2f\xfd", _zstd),
}
