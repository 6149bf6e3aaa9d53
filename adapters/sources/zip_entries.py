"""Reading a zip archive with bounded memory."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from manylora.adapters.sources.tar_stream import CHUNK, BadArchive, Entry

MAX_READ = 1 << 20  # bytes; Python's reader takes the whole directory of a zip in one piece

_PLAIN = (0, stat.S_IFREG, stat.S_IFDIR)
_ENCRYPTED = 0x1


def zip_entries(file: BinaryIO) -> Iterator[Entry]:
    """The entries of a zip archive.

    Raises:
        BadArchive, zipfile.BadZipFile, zlib.error, EOFError, ValueError: it is damaged.
    """
    with zipfile.ZipFile(_Bounded(file)) as archive:
        for info in archive.infolist():
            yield Entry(info.orig_filename, info.is_dir(), _refused(info), _content(archive, info))


def _refused(info: zipfile.ZipInfo) -> str | None:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode == stat.S_IFLNK:
        return "a symbolic link"
    if mode not in _PLAIN:
        return "a device, a pipe or a socket"
    if info.flag_bits & _ENCRYPTED:
        return "an encrypted file"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "a file that is neither stored nor deflated"
    return None


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(info) as file:
        while chunk := file.read(CHUNK):
            yield chunk


class _Bounded(io.RawIOBase):
    """A file that refuses to be read in large pieces, whatever an archive's headers ask for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            here = self._file.tell()
            size = self._file.seek(0, 2) - here
            self._file.seek(here)
        if size > MAX_READ:
            raise BadArchive("its directory is too large")
        return self._file.read(max(size, 0))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence == 0 and offset < 0:
            raise BadArchive("its directory is damaged")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True
