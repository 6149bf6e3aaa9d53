"""From where artifacts may be fetched, and how many bytes and files of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manylora.adapters.errors import ArtifactError, SourceMissing
from manylora.adapters.format.faults import shown, some
from manylora.adapters.format.files import CONFIG_NAME, WEIGHTS_NAME
from manylora.adapters.format.foreign.file_names import foreign_weights
from manylora.adapters.sources.folders import check_weights, choice

CHUNK = 1 << 20  # bytes copied at a time
Progress = Callable[[int, int | None], None]  # bytes so far, and in total where that is known


@dataclass(frozen=True)
class SourcePolicy:
    """Where adapters may come from; whatever is not listed is refused."""

    roots: tuple[Path, ...] = ()  # directories of this machine
    repositories: tuple[str, ...] = ()  # of the Hugging Face Hub, as globs: "org/*"
    urls: tuple[str, ...] = ()  # prefixes of URLs for fsspec: "s3://bucket/adapters/"
    max_bytes: int = 4 << 30  # of all files of one adapter
    max_files: int = 1000  # that an archive may hold, with those that are not kept
    hub_endpoint: str | None = None  # another Hub than huggingface.co
    # Options of fsspec by protocol; they may hold keys, so they are never shown.
    storage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)


class Meter:
    """Counts what comes in from one source, and says when it is too much."""

    def __init__(
        self, policy: SourcePolicy, progress: Progress | None = None, total: int | None = None
    ) -> None:
        """Count against the limits of ``policy``. ``total`` is what was promised, for ``progress`` alone."""
        self._policy = policy
        self._progress = progress
        self._total = total
        self.nbytes = 0
        self.files = 0

    def file(self) -> None:
        """Count one file against the limit.

        Raises:
            ArtifactError: that is one too many.
        """
        self.files += 1
        if self.files > self._policy.max_files:
            raise ArtifactError([f"there are more than {self._policy.max_files:,} files"])

    def take(self, nbytes: int) -> None:
        """Count bytes against the limit, before they are kept.

        Raises:
            ArtifactError: they are too many.
        """
        self.nbytes += nbytes
        self.check_size(self.nbytes)
        if self._progress is not None:
            self._progress(self.nbytes, self._total)

    def counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Hand on ``chunks``, each counted before."""
        for chunk in chunks:
            self.take(len(chunk))
            yield chunk

    def check_size(self, nbytes: int) -> None:
        """Check an announced size against the limit.

        Raises:
            ArtifactError: it is too much.
        """
        if nbytes > self._policy.max_bytes:
            raise ArtifactError([f"the files have more than {self._policy.max_bytes:,} bytes, the limit"])


def check_found(names: Collection[str], source: str, elsewhere: Collection[str] = ()) -> None:
    """Check that the files at ``source`` look like an adapter, before any of them is fetched.

    ``elsewhere`` are folders below that hold one, where that is known.

    Raises:
        SourceMissing: there is nothing of one.
        ArtifactError: its weights are a pickle, or several files may be the weights.
    """
    foreign = foreign_weights(names)
    if len(foreign) > 1:
        listed = some(foreign, len(foreign))
        raise ArtifactError(
            [f"several files at {shown(source)} may be the adapter: {listed}; name one of them"]
        )
    nothing = CONFIG_NAME not in names and WEIGHTS_NAME not in names and not foreign
    if nothing and elsewhere:
        raise SourceMissing(f"no adapter at {shown(source)} itself{choice(elsewhere)}")
    check_weights(names)
    if nothing:
        raise SourceMissing(f"no adapter at {shown(source)}: neither {CONFIG_NAME} nor {WEIGHTS_NAME}")


def write_new(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file that must not be there yet, its folder if need be; links are not followed.

    Raises:
        OSError: it is there, or the disk refused.
    """
    path.parent.mkdir(exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        for chunk in chunks:
            file.write(chunk)
