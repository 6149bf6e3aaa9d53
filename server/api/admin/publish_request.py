"""What a client asks to be published: where its files come from, and how much of them has come in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from manylora.server.residency.revision_loader import Fetch

UPLOADED: Final = "upload://"  # what the sources of uploads begin with


class FetchProgress:
    """How many bytes of an adapter have come in. Written by one thread, read by another: two numbers."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.total: int | None = None  # None while it isn't known

    def __call__(self, nbytes: int, total: int | None) -> None:
        self.nbytes, self.total = nbytes, total


@dataclass(frozen=True)
class PublishRequest:
    """An adapter that a client asks to be published: uploaded, fetched from a source, or composed."""

    source: str  # what the registry says it came from
    param: str  # of the HTTP request, named in errors about its files
    tags: tuple[str, ...] | None  # None: those that the name has
    fetch: Fetch  # puts the files into an empty directory, once; blocks
    discard: Callable[[], None] = lambda: None  # removes what is kept for it; harmless after ``fetch``
    progress: FetchProgress = field(default_factory=FetchProgress)
