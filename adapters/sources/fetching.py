"""Where artifacts come from: directories inside configured roots, the Hugging Face Hub, fsspec's storages.

/srv/adapters/support, support       a directory, inside the roots
file:///srv/adapters/support         the same
file:///srv/adapters/support.gguf    one file, of another tool; so in all of these
hf://org/repository@rev/subfolder    the Hub: repositories that are listed, at one commit
s3://bucket/adapters/support         and other URLs that fsspec reads, under prefixes that are listed
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from manylora.adapters.disk import disk_fault
from manylora.adapters.errors import (
    ArtifactError,
    SourceForbidden,
    SourceMissing,
    SourceUnreachable,
)
from manylora.adapters.format.faults import shown
from manylora.adapters.format.files import CONFIG_NAME, KEPT_NAMES, FileFault, open_regular
from manylora.adapters.format.foreign.file_names import (
    files_of_adapter,
    foreign_weights,
    names_a_file,
    only,
)
from manylora.adapters.mix import check_name
from manylora.adapters.sources.folders import check_subfolder
from manylora.adapters.sources.policy import CHUNK, Meter, Progress, SourcePolicy, check_found, write_new

__all__ = ["Progress", "SourcePolicy", "fetch", "find", "policy_for", "resolve_directory"]

MAX_PATH = 4096  # characters, Linux's own limit
PLACE = "{name}"  # in a source that stands for many

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Storage(Protocol):
    """A storage that adapters are fetched from by URL."""

    def fetch(self, source: str, into: Path, progress: Progress | None) -> str:
        """Download an adapter's files; returns the source as it is to be recorded."""

    def check(self, source: str) -> None:
        """Raise SourceForbidden or SourceMissing if ``source`` can't be fetched; the storage isn't asked."""

    def exists(self, source: str) -> bool:
        """Whether there is an adapter at ``source``."""


def in_subfolder(source: str, subfolder: str) -> str:
    """The source of the adapter in ``subfolder`` of ``source``; "" is ``source`` itself.

    Raises:
        SourceMissing: it is no path below another.
    """
    below = check_subfolder(subfolder)
    return f"{source.rstrip('/')}/{below}" if below else source


def fetch(source: str, into: Path, policy: SourcePolicy, progress: Progress | None = None) -> str:
    """Fill the empty directory ``into`` with the files of the adapter at ``source``. Blocks.

    Only files that a revision keeps are read. Returns the source as it is to be recorded: without
    credentials, and with the commit for the Hub. After a fault, ``into`` may hold a part.

    Raises:
        SourceForbidden: the policy doesn't allow it, or the storage refuses.
        SourceMissing: the source is malformed, or there is no adapter.
        SourceUnreachable: the storage doesn't answer.
        ArtifactError: too many bytes, or weights that are a pickle.
        StoreError: the disk refused.
    """
    try:
        place = _place(source, policy)
        if isinstance(place, Path):
            _copy(place, source, into, policy, progress)
            return source
        return place.fetch(source, into, progress)
    except OSError as error:
        raise disk_fault(f"an adapter can't be written to {into}", error) from None


def check(source: str, policy: SourcePolicy) -> None:
    """Find out whether ``source`` may be fetched, without asking any storage whether it is there.

    Raises:
        SourceForbidden: the policy doesn't allow it.
        SourceMissing: it is malformed, or a directory of this machine that is not there.
    """
    place = _place(source, policy)
    if not isinstance(place, Path):
        place.check(source)


def find(name: str, sources: Sequence[str], policy: SourcePolicy) -> str | None:
    """The first of ``sources`` at which there is an adapter called ``name``, which replaces "{name}" there.

    Raises:
        AdapterNameError: the name is malformed.
        SourceUnreachable: it was not found, but some source could not be asked.
    """
    name = check_name(name)
    trouble: SourceUnreachable | None = None
    for template in sources:
        source = template.replace(PLACE, name)
        try:
            if _exists(source, policy):
                return source
        except SourceUnreachable as error:
            trouble = trouble or error
        except (SourceForbidden, SourceMissing):
            continue  # a name that can't be one there, as "a:b" on the Hub
    if trouble is not None:
        raise trouble
    return None


def policy_for(sources: Sequence[str], policy: SourcePolicy) -> SourcePolicy:
    """``policy``, with what ``sources`` (that stand for many, see :func:`find`) need allowed as well."""
    roots, repositories, urls = list(policy.roots), list(policy.repositories), list(policy.urls)
    for source in sources:
        start = source.partition(PLACE)[0]
        scheme = _scheme(source)
        if scheme == "hf":
            repositories.append("/".join(source[5:].partition("@")[0].split("/")[:2]).replace(PLACE, "*"))
        elif scheme in {None, "file"}:
            roots.append(Path(os.path.dirname(_local_path(start) if scheme else start)))  # noqa: PTH120
        else:
            urls.append(start.rpartition("/")[0])
    return replace(policy, roots=tuple(roots), repositories=tuple(repositories), urls=tuple(urls))


def _exists(source: str, policy: SourcePolicy) -> bool:
    place = _place(source, policy)
    if not isinstance(place, Path):
        return place.exists(source)
    if place.is_file():
        return True
    return (place / CONFIG_NAME).is_file() or bool(foreign_weights(_names(place, policy)))


def _place(source: str, policy: SourcePolicy) -> Path | Storage:
    """What is asked for ``source``: a directory of this machine that may be read, or a storage."""
    if len(source) > MAX_PATH or "::" in source:
        raise SourceMissing(f"{shown(source)} is not a source")
    scheme = _scheme(source)
    if scheme is None:
        return resolve_directory(source, policy.roots)
    if scheme == "file":
        return resolve_directory(_local_path(source), policy.roots)
    if scheme == "hf":
        from manylora.adapters.sources.hub import Hub  # noqa: PLC0415  (slow to import, like the next)

        return Hub(policy)
    from manylora.adapters.sources.remote import Remote  # noqa: PLC0415

    return Remote(policy)


def _scheme(source: str) -> str | None:
    found = _SCHEME.match(source)
    return None if found is None else found.group(1).lower()


def _local_path(source: str) -> str:
    """The path of a file URL.

    Raises:
        SourceMissing: it names another machine, or has parts that a path has not.
    """
    try:
        url = urlsplit(source)
    except ValueError:
        raise SourceMissing(f"{shown(source)} is not a file URL") from None
    if url.netloc not in {"", "localhost"} or url.query or url.fragment or not url.path:
        raise SourceMissing(f"{shown(source)} is not a file URL of this machine: use file:///PATH")
    return unquote(url.path)


def _names(directory: Path, policy: SourcePolicy) -> set[str]:
    """The names of what is in a directory, as far as it may hold files; those of PEFT's files always."""
    names = {path.name for path in islice(directory.iterdir(), policy.max_files)}
    return names | {name for name in KEPT_NAMES if os.path.lexists(directory / name)}


def _copy(place: Path, source: str, into: Path, policy: SourcePolicy, progress: Progress | None) -> None:
    if names_a_file(str(place)) and not place.is_dir():
        directory = place.parent
        names = set(only(place.name, dict.fromkeys({place.name, *_names(directory, policy)})))
    else:
        directory, names = place, _names(place, policy)
        check_found(names, source, _adapters_below(directory, policy))
    roots = [_real(root) for root in policy.roots]
    with ExitStack() as opened:
        files = {
            name: opened.enter_context(_open_inside(directory / name, roots))
            for name in files_of_adapter(names)
        }
        total = sum(os.fstat(file.fileno()).st_size for file in files.values())
        meter = Meter(policy, progress, total)
        meter.check_size(total)
        for name, file in files.items():
            meter.file()
            write_new(into / name, meter.counted(_pieces(file)))


def _adapters_below(directory: Path, policy: SourcePolicy) -> list[str]:
    """The names of the directories in ``directory`` that hold an adapter."""
    entries = islice(directory.iterdir(), policy.max_files)
    return [path.name for path in entries if path.is_dir() and (path / CONFIG_NAME).is_file()]


def _open_inside(path: Path, roots: Sequence[Path]) -> BinaryIO:
    """Open a file and make sure that what was opened lies inside the roots, links or not."""
    try:
        file = open_regular(path)
    except FileFault as fault:
        raise ArtifactError([str(fault)]) from None
    try:
        real = _real(path)
        same = os.path.samestat(os.lstat(real), os.fstat(file.fileno()))
    except OSError:
        same = False  # it was exchanged meanwhile
    if same and _within(real, roots):
        return file
    file.close()
    raise SourceForbidden(f"{path.name} is a link that leads out of the adapter roots")


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def resolve_directory(path: str, roots: Sequence[Path]) -> Path:
    """The real directory, or file of another tool, that ``path`` names, inside one of ``roots``.

    A relative path is looked up under each root in turn, then from the working directory. Symbolic
    links are followed first and the result is compared, for the directory and for the adapter's files
    in it, so a link can't lead out. Without roots nothing is allowed. "~" and variables mean nothing
    here. Whether a forbidden path exists is not told.

    Raises:
        SourceForbidden: it lies outside the roots, or one of its files does.
        SourceMissing: there is no such directory, or it can't be read.
    """
    if not roots:
        raise SourceForbidden("loading adapters from a path is off: start the server with --adapter-root DIR")
    if not path or "\0" in path or len(path) > MAX_PATH:
        raise SourceMissing(f"{shown(path)} is not a path")
    real_roots = [Path(os.path.realpath(root)) for root in roots]
    candidates = [_real(start / path) for start in (*real_roots, Path.cwd())]
    inside = [found for found in candidates if _within(found, real_roots)]
    if not inside:
        raise SourceForbidden(f"{shown(path)} is outside the directories that adapters may be loaded from")
    directory = next((found for found in inside if os.path.isdir(found)), inside[0])  # noqa: PTH112 (never raises)
    if names_a_file(path):
        one = next((found for found in inside if os.path.isfile(found)), None)  # noqa: PTH113 (never raises)
        if one is not None:
            return one
    _check_readable(directory, path)
    for name in KEPT_NAMES:
        if not _within(_real(directory / name), real_roots):
            raise SourceForbidden(f"{name} of {shown(path)} is a link that leads out of the adapter roots")
    return directory


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _within(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _check_readable(directory: Path, path: str) -> None:
    try:
        mode = directory.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        raise SourceMissing(f"no adapter at {shown(path)}: {reason.lower()}") from None
    if not stat.S_ISDIR(mode):
        raise SourceMissing(f"no adapter at {shown(path)}: it is not a directory")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise SourceMissing(f"no adapter at {shown(path)}: permission denied")
