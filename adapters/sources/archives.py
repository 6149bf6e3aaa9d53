"""Unpacking an uploaded archive: tar, tar.gz or zip, from somebody who may mean harm.

Nothing is written but files of known names, flat, into one directory. Everything else is read past,
though it counts: an archive with a link, a device, a path that leads out, two entries of one name, or
more bytes than allowed is refused whether or not the entry would have been kept. Memory stays bounded
whatever the archive claims.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from manylora.adapters.disk import disk_fault
from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.faults import shown, some
from manylora.adapters.format.files import KEPT_NAMES, PICKLES, WEIGHTS_NAME, pickle_fault
from manylora.adapters.sources.policy import Meter, SourcePolicy, write_new
from manylora.adapters.sources.tar_stream import BadArchive, Entry, gunzipped, tar_entries, whole
from manylora.adapters.sources.zip_entries import zip_entries

MAX_PATH = 1024  # characters of an entry's name
MAX_RATIO = 100  # of what is unpacked to what was read
RATIO_FREE = 16 << 20  # bytes that may be unpacked before the ratio counts

_UNREADABLE = (
    BadArchive,
    zipfile.BadZipFile,
    struct.error,
    zlib.error,
    EOFError,
    NotImplementedError,
    ValueError,
)
_DRIVE = re.compile(r"[A-Za-z]:")


def unpack(file: BinaryIO, into: Path, policy: SourcePolicy) -> None:
    """Put the adapter in the archive ``file`` (seekable) into the empty directory ``into``.

    The files lie at the top of the archive or in one directory. After a fault, ``into`` may hold a part.

    Raises:
        ArtifactError: the archive is damaged, unsafe or too large, or no adapter is in it.
        StoreError: the disk refused.
    """
    try:
        size = file.seek(0, 2)
        file.seek(0)
        magic = file.read(4)
        file.seek(0)
        names = _Names()
        _unpack(_entries(file, magic), into, names, _Ratio(policy, size))
    except _UNREADABLE as error:
        raise ArtifactError([f"the archive can't be read: {shown(str(error))[1:-1]}"]) from None
    except OSError as error:
        raise disk_fault("the archive can't be unpacked", error) from None
    names.check_complete()


def _entries(file: BinaryIO, magic: bytes) -> Iterator[Entry]:
    if magic in {b"PK\x03\x04", b"PK\x05\x06"}:
        return zip_entries(file)
    if magic[:2] == b"\x1f\x8b":
        return tar_entries(gunzipped(file))
    return tar_entries(whole(file))


def _unpack(entries: Iterable[Entry], into: Path, names: _Names, meter: Meter) -> None:
    for entry in entries:
        meter.file()
        kept = names.add(entry)
        chunks = meter.counted(entry.chunks)
        if kept is not None:
            write_new(into / kept, chunks)
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


class _Names:
    """The names of an archive's entries, checked as they come."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._parents: set[str] = set()
        self._kept: set[str] = set()
        self._pickles: set[str] = set()

    def add(self, entry: Entry) -> str | None:
        """The name under which an entry is kept, if it is.

        Raises:
            ArtifactError: no archive may hold such an entry.
        """
        path = _checked(entry)
        if path.casefold() in self._seen and not entry.directory:
            raise ArtifactError([f"the archive holds {shown(path)} twice"])
        self._seen.add(path.casefold())
        parent, _, name = path.rpartition("/")
        if entry.directory or "/" in parent:
            return None
        if name.endswith(PICKLES):
            self._pickles.add(name)
        if name not in KEPT_NAMES:
            return None
        self._parents.add(parent)
        if len(self._parents) > 1:
            where = some((f"{p}/" for p in sorted(self._parents)), len(self._parents))
            raise ArtifactError([f"the archive holds more than one adapter: in {where}"])
        self._kept.add(name)
        return name

    def check_complete(self) -> None:
        """Refuse an archive that held nothing of an adapter, before the validation says it less well."""
        if self._pickles and WEIGHTS_NAME not in self._kept:
            raise ArtifactError([pickle_fault(min(self._pickles))])
        if not self._kept:
            raise ArtifactError(["the archive holds no adapter at its top or in its one directory"])


def _checked(entry: Entry) -> str:
    """The entry's path without "." parts and slashes at its end."""
    if entry.refused is not None:
        raise ArtifactError([f"the archive holds {entry.refused} ({shown(entry.path)})"])
    parts = [part for part in entry.path.split("/") if part not in {"", "."}]
    unsafe = (
        len(entry.path) > MAX_PATH
        or entry.path.startswith("/")
        or ".." in parts
        or "\\" in entry.path
        or _DRIVE.match(entry.path) is not None
        or not entry.path.isprintable()
        or (not parts and not entry.directory)
    )
    if unsafe:
        raise ArtifactError([f"the archive holds an unsafe path: {shown(entry.path)}"])
    return "/".join(parts)
