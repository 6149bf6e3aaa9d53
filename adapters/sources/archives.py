"""Unpacking an uploaded archive: tar, tar.gz or zip, from somebody who may mean harm.

Nothing is written but files of known names, one of which lies in a folder. Everything else is read past,
though it counts: an archive with a link, a device, a path that leads out, two entries of one name, or
more bytes than allowed is refused whether or not the entry would have been kept. Memory stays bounded
whatever the archive claims.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from manylora.adapters.disk import disk_fault
from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.faults import shown
from manylora.adapters.format.files import KEPT_NAMES, PICKLES, folder_and_name, place_in
from manylora.adapters.format.foreign.file_names import files_of_adapter, may_be_weights
from manylora.adapters.sources.folders import check_weights, choose, clean_path, is_junk
from manylora.adapters.sources.policy import Meter, SourcePolicy, write_new
from manylora.adapters.sources.tar_stream import BadArchive, Entry, gunzipped, tar_entries, whole
from manylora.adapters.sources.zip_entries import zip_entries

MAX_RATIO = 100  # of what is unpacked to what was read
RATIO_FREE = 16 << 20  # bytes that may be unpacked before the ratio counts
MAGIC_BYTES = 512  # of an archive, by which it is known

_ZIPS = (b"PK\x03\x04", b"PK\x05\x06")
_GZIP = b"\x1f\x8b"
_OTHERS = (b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07")  # not read
_TAR_AT, _TAR = 257, b"ustar"

_UNREADABLE = (
    BadArchive,
    zipfile.BadZipFile,
    struct.error,
    zlib.error,
    EOFError,
    NotImplementedError,
    ValueError,
)


def is_archive(head: bytes) -> bool:
    """Whether a file is an archive, read here or not, by its first :data:`MAGIC_BYTES`."""
    return head.startswith((*_ZIPS, _GZIP, *_OTHERS)) or head[_TAR_AT:].startswith(_TAR)


def unpack(file: BinaryIO, into: Path, policy: SourcePolicy, subfolder: str = "") -> None:
    """Put the adapter in the archive ``file`` (seekable) into the empty directory ``into``.

    It is the one in ``subfolder``, or the topmost: at the top of the archive, in its one folder, or wherever
    the only one is. After a fault, ``into`` is empty, or holds a part.

    Raises:
        ArtifactError: the archive is damaged, unsafe or too large, no adapter is in it, or several are.
        StoreError: the disk refused.
    """
    try:
        size = file.seek(0, 2)
        file.seek(0)
        magic = file.read(4)
        file.seek(0)
        with TemporaryDirectory(prefix=".", dir=into, ignore_cleanup_errors=True) as staged:
            folders = _Folders(Path(staged))
            _unpack(_entries(file, magic), folders, _Ratio(policy, size))
            folders.take(subfolder, into)
    except _UNREADABLE as error:
        raise ArtifactError([f"the archive can't be read: {shown(str(error))[1:-1]}"]) from None
    except OSError as error:
        raise disk_fault("the archive can't be unpacked", error) from None


def _entries(file: BinaryIO, magic: bytes) -> Iterator[Entry]:
    if magic in _ZIPS:
        return zip_entries(file)
    if magic[:2] == _GZIP:
        return tar_entries(gunzipped(file))
    return tar_entries(whole(file))


def _unpack(entries: Iterable[Entry], folders: _Folders, meter: Meter) -> None:
    for entry in entries:
        meter.file()
        place = folders.add(entry)
        chunks = meter.counted(entry.chunks)
        if place is not None:
            write_new(place, chunks)
        else:
            for _ in chunks:
                pass


class _Ratio(Meter):
    """A meter that knows how small the archive is."""

    def __init__(self, policy: SourcePolicy, packed: int) -> None:
        super().__init__(policy)
        self._packed = packed

    def take(self, nbytes: int) -> None:
        super().take(nbytes)
        if self.nbytes > max(RATIO_FREE, MAX_RATIO * self._packed):
            raise ArtifactError([f"the archive unpacks to more than {MAX_RATIO} times its size"])


class _Folders:
    """The folders of an archive, whose entries are checked as they come; a numbered directory for each."""

    def __init__(self, staged: Path) -> None:
        self._staged = staged
        self._seen: set[str] = set()
        self._names: dict[str, set[str]] = {}  # of each folder: files that are kept, and pickles
        self._places: dict[str, Path] = {}

    def add(self, entry: Entry) -> Path | None:
        """Where an entry is to be written, if it is kept.

        Raises:
            ArtifactError: no archive may hold such an entry.
        """
        path, directory = _checked(entry)
        if path.casefold() in self._seen and not directory:
            raise ArtifactError([f"the archive holds {shown(path)} twice"])
        self._seen.add(path.casefold())
        folder, name = folder_and_name(path)
        kept = name in KEPT_NAMES or may_be_weights(name)
        if directory or is_junk(path) or not (kept or name.endswith(PICKLES)):
            return None
        self._names.setdefault(folder, set()).add(name)
        return place_in(self._place(folder), name) if kept else None

    def take(self, subfolder: str, into: Path) -> None:
        """Move what the chosen folder holds to ``into``.

        Raises:
            ArtifactError: there is nothing of an adapter, several, or one whose weights are a pickle.
        """
        folder = choose(self._names, subfolder)
        check_weights(self._names[folder])
        for name in files_of_adapter(self._names[folder]):
            (self._place(folder) / name).rename(place_in(into, name))

    def _place(self, folder: str) -> Path:
        if folder not in self._places:
            place = self._staged / str(len(self._places))
            place.mkdir()
            self._places[folder] = place
        return self._places[folder]


def _checked(entry: Entry) -> tuple[str, bool]:
    """The entry's path, and whether it is a directory, which some writers only tell by a slash at its end."""
    if entry.refused is not None:
        raise ArtifactError([f"the archive holds {entry.refused} ({shown(entry.path)})"])
    path, directory = clean_path(entry.path), entry.directory or entry.path.endswith(("/", "\\"))
    if path is None or (not path and not directory):
        raise ArtifactError([f"the archive holds an unsafe path: {shown(entry.path)}"])
    return path, directory
