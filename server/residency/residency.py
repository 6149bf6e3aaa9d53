"""Where revisions are, and what moves them: device, host memory, disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from manylora.adapters.errors import AdapterInUse, SourceMissing
from manylora.server.engine.order.turns import NO_TENANT, Asker
from manylora.server.model.pages.pool import PackedAdapter
from manylora.server.residency.device_cache import DeviceCache
from manylora.server.residency.host_cache import HostCache
from manylora.server.residency.references import References
from manylora.server.residency.revision import Revision

logger = logging.getLogger(__name__)

T = TypeVar("T")

_READ_EARLY = 4  # revisions that may be read before anybody waits for them


@dataclass(frozen=True)
class BytesByTier:
    """Bytes that a revision takes in each tier; 0 where it isn't."""

    device: int
    memory: int
    disk: int


class Residency:
    """Brings revisions to the device and takes them off. Lives on the event loop."""

    def __init__(
        self,
        references: References,
        device: DeviceCache,
        host: HostCache,
        refetch: Callable[[str], Awaitable[None]],
    ) -> None:
        """``refetch(digest)`` brings a revision's lost files back, or raises."""
        self.references = references
        self.device = device
        self.host = host
        self._refetch = refetch

    def is_resident(self, digest: str) -> bool:
        """Whether the revision's pages are on the device."""
        return self.device.is_resident(digest)

    def device_bytes(self, digest: str) -> int:
        """Bytes it takes on the device when it is there; 0 if that isn't known yet."""
        return sum(revision.nbytes for revision in self.references.known([digest]))

    def bytes_by_tier(self, digest: str, stored: int) -> BytesByTier:
        """Where the revision's bytes are, given those that are ``stored`` on disk."""
        device = self.device_bytes(digest) if self.is_resident(digest) else 0
        return BytesByTier(device, self.host.bytes_of(digest), stored)

    def read_early(self, members: Sequence[Revision]) -> None:
        """Begin to read what is not on the device, before the request gets to wait for it."""
        for revision in members:
            if revision.pages is None and self.host.num_reading < _READ_EARLY:
                self.host.load(revision.digest)

    async def acquire(self, members: Sequence[Revision], asker: Asker = NO_TENANT) -> None:
        """Wait until every member is on the device, and keep them there for one holder.

        Raises:
            AdapterNotFound: a member was deleted meanwhile, and its files with it.
            AdapterTooLarge: the members can't be on the device together, beside what is pinned there.
            SourceMissing, ArtifactError: its files are gone or damaged.
            QueueFull: too many requests wait for adapters.
        """
        refetched: set[str] = set()
        while True:
            try:
                return await self.device.acquire(members, asker)
            except SourceMissing:
                lost = [r.digest for r in members if r.pages is None and r.digest not in refetched]
                if not lost:
                    raise
                for digest in lost:  # outside of the queue: whoever waits behind has nothing to do with it
                    await self._refetch(digest)
                refetched.update(lost)

    async def prefetch(self, digest: str) -> None:
        """Bring a revision in: to the device if idle ones can make room there, else to host memory.

        Raises:
            AdapterTooLarge: pinned ones leave it no room on the device.
            AdapterInUse: running requests leave it none, and host memory doesn't keep it.
            AdapterNotFound, SourceMissing, ArtifactError: its files are gone or damaged.
        """
        revision = self.references.revision(digest)
        if revision.pages is not None:
            return
        packed = await self._with_files(digest, lambda: asyncio.shield(self.host.load(digest)))
        if await self.device.offer(revision, packed):
            return
        self.device.check_fits([revision])
        if not self.host.bytes_of(digest):
            raise AdapterInUse(
                "there is no room for it now: running requests take the adapter memory, and the host memory "
                "that caches adapters does not hold it (--adapter-cache-memory)"
            )

    async def offer(self, packed: PackedAdapter) -> None:
        """Take what was just packed, to the device if idle revisions can make room there."""
        self.host.keep(packed)
        await self.device.offer(self.references.revision(packed.digest), packed)

    async def evict(self, digests: Sequence[str]) -> int:
        """Take revisions off the device and out of host memory; returns the device bytes freed.

        Raises:
            AdapterInUse: one is pinned, or a request holds it.
        """
        revisions = self.references.known(digests)
        if self.references.count(digests):
            running = sum(map(self.references.requests.of_revision, digests))
            raise AdapterInUse(f"{running} requests run with it or wait for it")
        if any(revision.pinned for revision in revisions):
            raise AdapterInUse("it is pinned: unpin it first")
        for digest in digests:
            self.host.drop(digest)
        return sum([await self.device.remove(revision) for revision in revisions])

    def pin(self, digests: Collection[str]) -> list[asyncio.Future[None]]:
        """Keep exactly these on the device from now on; the results tell when those that lack are there."""
        return [self._bring(revision) for revision in self.references.pin(digests) if revision.pages is None]

    async def make_resident(self, digest: str) -> None:
        """Bring a revision to the device, waiting for room if need be.

        Raises:
            AdapterTooLarge: it can't be there beside what is pinned.
            AdapterNotFound, SourceMissing, ArtifactError: its files are gone or damaged.
        """
        revision = self.references.revision(digest)
        if revision.pages is None:
            await self._with_files(digest, lambda: self.device.bring(revision))

    async def _with_files(self, digest: str, bring: Callable[[], Awaitable[T]]) -> T:
        """Do what reads a revision; where its files are missing they are fetched again first."""
        try:
            return await bring()
        except SourceMissing:
            await self._refetch(digest)
            return await bring()

    def _bring(self, revision: Revision) -> asyncio.Future[None]:
        def tell(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                logger.warning("a pinned adapter is not resident: %s", error)

        future = self.device.bring(revision)
        future.add_done_callback(tell)
        return future

    def check(self) -> None:
        """Assert that references and memory balance."""
        self.device.check()
        self.host.check()
        self.references.check()

    async def close(self) -> None:
        """Stop loading, and end the threads that read."""
        await self.device.close()
        await self.host.close()
