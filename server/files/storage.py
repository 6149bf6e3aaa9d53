"""Where the bytes of files lie: in a directory of this server, or in a storage that servers share."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import fsspec

from manylora.adapters.disk import is_full
from manylora.adapters.errors import StorageUnreachable
from manylora.server.errors import ConfigError

PIECE = 1 << 20  # bytes read at a time
_URL = re.compile(r"[a-z][a-z0-9+.-]*://([^/]*)(?:/|\Z)")
TEMPORARY = ".temporary-"  # begins names of directories that are there for a while


class Storage(Protocol):
    """Bytes by name. All methods block."""

    @property
    def owner(self) -> str:
        """What the registry calls it."""

    def put(self, path: Path, name: str) -> None:
        """Keep the bytes of the file at ``path``, which may be gone afterwards."""

    def take_back(self, path: Path, name: str) -> None:
        """Undo ``put``: the file is at ``path`` again."""

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes, in order. FileNotFoundError if there are none of that name."""

    def local(self, name: str) -> AbstractContextManager[Path]:
        """A file of this machine with the bytes, to be read only. FileNotFoundError as above."""

    def remove(self, name: str) -> None:
        """Free the bytes, if they are there."""


class DirectoryStorage:
    """A directory of this server, made when it is first needed."""

    def __init__(self, directory: Path, owner: str) -> None:
        self._directory, self.owner = directory, owner

    def path(self, name: str) -> Path:
        """Where the bytes of that name lie, if they do."""
        return self._directory / name

    def put(self, path: Path, name: str) -> None:
        """Move ``path``, which is on the same disk."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path.replace(self.path(name))

    def take_back(self, path: Path, name: str) -> None:
        """Move the file of that name back."""
        self.path(name).replace(path)

    def pieces(self, name: str) -> Iterator[bytes]:
        """Read the file of that name."""
        with self.path(name).open("rb") as file:
            while piece := file.read(PIECE):
                yield piece

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """The file itself."""
        path = self.path(name)
        if not path.is_file():
            raise FileNotFoundError(name)
        yield path

    def remove(self, name: str) -> None:
        """Delete the file of that name."""
        self.path(name).unlink(missing_ok=True)


class UrlStorage:
    """A folder of any storage that fsspec writes: S3, Google Cloud, Azure, a network disk (``file://``), …

    What a storage raises becomes :class:`StorageUnreachable`. Credentials come from the environment.
    """

    def __init__(self, url: str, working: Path) -> None:
        """
        Args:
            url: of the folder.
            working: directory for files that are fetched for a while.

        Raises:
            ConfigError: the URL is malformed, or its protocol unknown here.
        """
        self._url, self._working = url.rstrip("/"), working
        found = _URL.match(url)
        if found is None or "::" in url or "@" in found[1]:
            raise ConfigError("--files-url: give PROTOCOL://PLACE/FOLDER, and credentials in the environment")
        try:
            self._files, self._base = fsspec.core.url_to_fs(self._url)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigError(f"--files-url: {error}") from None
        self.owner = f"url:{hashlib.sha256(self._url.encode()).hexdigest()[:40]}"

    def put(self, path: Path, name: str) -> None:
        """Upload ``path``, which stays."""
        with self._told():
            self._files.makedirs(self._base, exist_ok=True)
            self._files.put_file(str(path), self._place(name))

    def take_back(self, path: Path, name: str) -> None:  # noqa: ARG002 - a directory needs it
        """Delete what was uploaded."""
        self.remove(name)

    def pieces(self, name: str) -> Iterator[bytes]:
        """Download the object of that name, a piece at a time."""
        with self._told(), self._files.open(self._place(name), "rb", cache_type="readahead") as file:
            while piece := file.read(PIECE):
                yield piece

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A copy that is there as long as the block runs."""
        self._working.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=self._working) as directory:
            path = Path(directory) / "file"
            with path.open("xb") as file:
                for piece in self.pieces(name):
                    file.write(piece)
            yield path

    def remove(self, name: str) -> None:
        """Delete the object of that name."""
        with self._told():
            try:
                self._files.rm_file(self._place(name))
            except FileNotFoundError:
                return

    def _place(self, name: str) -> str:
        self._files.invalidate_cache()  # what another server did a moment ago counts
        return f"{self._base}/{name}"

    @contextmanager
    def _told(self) -> Iterator[Any]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each storage's client has its own
            if is_full(error):
                raise
            raise StorageUnreachable(f"the storage of files can't be used: {type(error).__name__}") from error
