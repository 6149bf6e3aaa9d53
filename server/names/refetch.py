"""Revisions whose files have vanished, fetched again from where they came."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path
from time import monotonic

from manylora.adapters.errors import AdapterNotFound, SourceMissing
from manylora.adapters.registry.records import NameRecord, State
from manylora.adapters.registry.registry import Registry
from manylora.server.metrics.metrics import Metrics
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.residency.held_mix import HeldMix
from manylora.server.residency.host_cache import HostCache
from manylora.server.residency.revision_loader import SHOWN_DIGITS, RevisionLoader
from manylora.server.threads import LimitedWork

logger = logging.getLogger(__name__)


class Refetcher:
    """Fetches lost files again. One attempt a revision at a time, shared by all who need it."""

    def __init__(
        self,
        mirror: RegistryMirror,
        *,
        loader: RevisionLoader,
        host: HostCache,
        fetching: LimitedWork,
        fetch: Callable[[str, Path], str] | None,
        metrics: Metrics,
    ) -> None:
        """``fetch(source, directory)`` blocks, so ``fetching`` runs it. None: nothing can be fetched."""
        self._mirror = mirror
        self._loader = loader
        self._host = host
        self._fetching = fetching
        self._fetch = fetch
        self._metrics = metrics
        self._running: dict[str, asyncio.Task[None]] = {}

    def can_refetch(self, record: NameRecord) -> bool:
        """Whether a name that failed for want of its files may serve again."""
        lost = record.state is State.FAILED and record.digest is not None
        return lost and self._fetch is not None and is_remote(record.source)

    async def refetch(self, digest: str) -> None:
        """Bring a revision's files back; those who ask at the same time share one attempt.

        Raises:
            AdapterNotFound: the revision was deleted, and its files with it.
            SourceMissing: its source can't be asked, or has it no more.
        """
        if digest not in self._running:
            task = self._running[digest] = asyncio.create_task(self._refetch(digest))
            task.add_done_callback(lambda done: self._ended(digest, done))
        await asyncio.shield(self._running[digest])

    async def ensure_on_disk(self, held: HeldMix, also: Container[str] = ()) -> None:
        """Fetch again those members whose files are needed, have vanished, and come from a remote source.

        Needed are those that are neither on the device nor in host memory, and the digests in ``also``.

        Raises:
            AdapterNotFound: a member was deleted meanwhile, and its files with it.
            SourceMissing: its source can't be asked, or has it no more.
        """
        for revision in held.members:
            digest = revision.digest
            here = revision.pages is not None or self._host.bytes_of(digest) > 0
            if (digest in also or not here) and not self._loader.has(digest):
                await self.refetch(digest)

    async def close(self) -> None:
        """Wait for what has begun."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _ended(self, digest: str, task: asyncio.Task[None]) -> None:
        del self._running[digest]
        if not task.cancelled():
            task.exception()

    async def _refetch(self, digest: str) -> None:
        shown = digest[:SHOWN_DIGITS]
        found = await self._mirror.all_facts([digest])
        if not found:
            raise AdapterNotFound(f"revision {shown} was deleted")
        source, fetch = found[0].source, self._fetch
        if fetch is None or not is_remote(source):
            await self._lose(digest)
            raise SourceMissing(f"the files of revision {shown} are missing from the server's store")
        began = monotonic()
        try:
            await self._fetching.run(
                lambda: self._loader.put_back(digest, source, lambda into: fetch(source, into))
            )
        except SourceMissing:
            await self._lose(digest)
            raise
        for name in self._mirror.names_with(digest):
            await self._serve_again(name, digest)
        self._metrics.adapters.found("remote").inc()
        self._metrics.adapters.loaded("remote", monotonic() - began)
        logger.warning("revision %s had vanished from disk and was fetched again from %s", shown, source)

    async def _lose(self, digest: str) -> None:
        """Show that what points to the revision can't serve any more, if its directory is what is missing."""
        if not self._loader.has(digest):
            for name in self._mirror.names_with(digest):
                await self._mirror.change(name, partial(_lose, name=name, digest=digest))

    async def _serve_again(self, name: str, digest: str) -> None:
        """End the failure of a name whose current revision had been found missing."""
        record = self._mirror.names.get(name)
        if record is not None and record.state is State.FAILED and record.digest == digest:
            await self._mirror.change(name, lambda registry: registry.names.rollback(name, digest))


def _lose(registry: Registry, *, name: str, digest: str) -> None:
    registry.recovery.mark_missing(name, digest)


def is_remote(source: str) -> bool:
    """Whether a source is somewhere else than on this machine's file systems."""
    scheme, separator, _ = source.partition("://")
    return bool(separator) and scheme not in {"file", "upload"}
