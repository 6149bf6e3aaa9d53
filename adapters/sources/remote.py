"""Adapters from any storage that fsspec reads: S3, Google Cloud, Azure, HTTP, …

Only URLs under the prefixes that the operator allowed are read, and of those only files of known
names, which are asked for one by one: nothing is listed. Credentials come from the environment or the
operator's options, never from the URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from manylora.adapters.disk import is_full
from manylora.adapters.errors import AdapterError, SourceForbidden, SourceMissing, SourceUnreachable
from manylora.adapters.format.faults import shown
from manylora.adapters.format.files import CONFIG_NAME, KEPT_NAMES
from manylora.adapters.format.foreign.file_names import (
    PROBED_NAMES,
    files_of_adapter,
    names_a_file,
    only,
)
from manylora.adapters.sources.policy import CHUNK, Meter, Progress, SourcePolicy, check_found, write_new

# What reads files of this machine, or wraps another file system that might: the roots rule those.
LOCAL = frozenset(
    {"arrow_hdfs", "asynclocal", "asyncwrapper", "blockcache", "cached", "dask", "data", "dir", "file"}
    | {"filecache", "generic", "git", "jlab", "jupyter", "libarchive", "local", "reference", "simplecache"}
    | {"tar", "zip"}
)
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]+)((?:/[^/]+)+)/?")
_PROBED = (*KEPT_NAMES, *PROBED_NAMES, "adapter_model.bin")


def check_url(source: str, allowed: tuple[str, ...]) -> str:
    """Return the protocol of ``source`` if it may be read.

    Raises:
        SourceForbidden: it is not under one of the prefixes ``allowed``.
        SourceMissing: it is malformed.
    """
    found = _URL.fullmatch(source)
    if found is None or not source.isprintable() or any(c in source for c in "\\?#%*[]"):
        raise SourceMissing(f"{shown(source)} is not a URL of the form protocol://place/path")
    protocol, place, path = found.groups()
    if "@" in place:
        raise SourceForbidden("credentials don't belong in a URL: give them to the server's environment")
    if "::" in source or protocol in LOCAL or {".", ".."} & set(path.split("/")):
        raise SourceForbidden("chained URLs, local files and relative paths can't be read as a URL")
    if not any(_under(source, prefix) for prefix in allowed):
        raise SourceForbidden(f"{protocol}://{place}/… is not among the places adapters may come from")
    return protocol


def _under(source: str, prefix: str) -> bool:
    return f"{source}/".startswith(f"{prefix.rstrip('/')}/")


class Remote:
    """The storages of fsspec, as far as a policy allows them."""

    def __init__(self, policy: SourcePolicy) -> None:
        self._policy = policy

    def fetch(self, source: str, into: Path, progress: Progress | None) -> str:
        """Download an adapter's files; returns the source.

        Raises:
            SourceForbidden, SourceMissing, SourceUnreachable, ArtifactError: see :func:`fetch`.
        """
        protocol = check_url(source, self._policy.urls)
        base, file = _folder(source)
        with _explained(source):
            files = self._open(protocol)
            sizes = {}
            for name in _PROBED if file is None else (file, *KEPT_NAMES):
                info = _info(files, f"{base}/{name}")
                if info is not None:
                    sizes[name] = int(info.get("size") or 0)
            if file is not None:
                sizes = only(file, sizes)
            check_found(sizes, source)
            kept = {name: sizes[name] for name in files_of_adapter(sizes)}
            meter = Meter(self._policy, progress, total=sum(kept.values()))
            meter.check_size(sum(kept.values()))
            for name in kept:
                meter.file()
                write_new(into / name, meter.counted(_read(files, protocol, f"{base}/{name}")))
        return source

    def check(self, source: str) -> None:
        """Raise SourceForbidden or SourceMissing if ``source`` can't be fetched, whatever lies there."""
        check_url(source, self._policy.urls)

    def exists(self, source: str) -> bool:
        """Whether there is an adapter at ``source``.

        Raises:
            SourceForbidden, SourceUnreachable: it can't be told.
        """
        protocol = check_url(source, self._policy.urls)
        with _explained(source):
            files, (folder, file) = self._open(protocol), _folder(source)
            if file is not None:
                return _info(files, f"{folder}/{file}") is not None
            return any(_info(files, f"{folder}/{name}") is not None for name in (CONFIG_NAME, *PROBED_NAMES))

    def _open(self, protocol: str) -> Any:
        files = fsspec.filesystem(protocol, **self._policy.storage.get(protocol, {}))
        files.invalidate_cache()  # what was uploaded a moment ago counts
        return files


def _folder(source: str) -> tuple[str, str | None]:
    """The URL of the folder, and the name of the file in it if one is named."""
    base = source.rstrip("/")
    if not names_a_file(base):
        return base, None
    folder, _, file = base.rpartition("/")
    return folder, file


def _info(files: Any, path: str) -> dict[str, Any] | None:
    """What the storage says of one file, if it is there."""
    try:
        info: dict[str, Any] = files.info(path)
    except FileNotFoundError:
        return None
    return info if info.get("type") == "file" else None


def _read(files: Any, protocol: str, path: str) -> Iterator[bytes]:
    # Forwards in one piece: not every web server answers for parts of a file.
    how = {"block_size": 0} if protocol in {"http", "https"} else {"cache_type": "readahead"}
    with files.open(path, "rb", **how) as file:
        while chunk := file.read(CHUNK):
            yield chunk


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Say in the words of the adapters' errors what the storage raises."""
    try:
        yield
    except AdapterError:
        raise
    except FileNotFoundError:
        raise SourceMissing(f"there is no adapter at {shown(source)}: it disappeared meanwhile") from None
    except PermissionError:
        raise SourceForbidden(f"the storage refuses access to {shown(source)}") from None
    except (
        ImportError,
        ValueError,
    ) as error:  # a protocol that fsspec doesn't know, or whose package is missing
        raise SourceUnreachable(f"{shown(source)} can't be read: {shown(str(error))[1:-1]}") from None
    except Exception as error:  # each storage's client has its own
        if is_full(error):
            raise
        raise SourceUnreachable(f"{shown(source)} can't be read: {type(error).__name__}") from error
