"""The revisions this server has in its hands: what requests hold, what is moved, and when they are freed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from time import monotonic
from typing import TypeVar

from manylora.adapters.errors import AdapterError, AdapterInUse, SourceMissing
from manylora.server.model.pages.pool import PackedAdapter
from manylora.server.residency.device_cache import Placement
from manylora.server.residency.host_cache import Tiers
from manylora.server.residency.lease import Lease, Resolution
from manylora.server.residency.revision import Revision
from manylora.server.residency.revision_loader import SHOWN_DIGITS, Library
from manylora.server.residency.revisions import Revisions

logger = logging.getLogger(__name__)

T = TypeVar("T")

_READ_EARLY = 4  # revisions that may be read before anybody waits for them


class Holdings(Revisions):
    """References and residency by revision. A revision that no name has is freed with its last reference."""

    def __init__(
        self,
        library: Library,
        tiers: Tiers,
        placement: Placement,
        *,
        is_held: Callable[[str], bool],
        restore: Callable[[str], Awaitable[None]],
    ) -> None:
        """``is_held`` tells whether some name has a revision; ``restore`` brings lost files back."""
        super().__init__(tiers, placement)
        self._library = library
        self._is_held = is_held
        self._restore = restore
        self._retiring: dict[str, asyncio.Task[int]] = {}
        self._closing = False
        self._waiting: list[asyncio.Future[None]] = []  # for :meth:`changed`

    # What requests hold.

    async def lease(self, resolution: Resolution) -> Lease:
        """Wait until every member is on the device; failure or cancellation drops the references.

        Raises:
            AdapterNotFound: a member was deleted meanwhile, and its files with it.
            SourceMissing, ArtifactError: its files are gone or damaged.
        """
        if resolution.variant is not None:  # its weights are there: nothing to wait for, nor to hold
            resolution.leased = True
            return Lease(self, resolution)
        try:
            await self._acquire(resolution.members)
        except BaseException:
            self.drop(resolution)
            raise
        resolution.leased = True
        return Lease(self, resolution)

    def refer(self, members: Iterable[Revision]) -> None:
        """Count one more request that holds each of ``members``."""
        for revision in members:
            revision.references += 1

    def warm_up(self, members: Iterable[Revision]) -> None:
        """Begin to read what is not on the device, before the request gets to wait for it."""
        for revision in members:
            if revision.pages is None and self.tiers.num_reading < _READ_EARLY:
                self.tiers.load(revision.digest)

    def share(self, resolution: Resolution) -> Lease:
        """A further lease on a mix that is leased now."""
        shared = self.again(resolution)
        shared.leased = True
        if resolution.variant is None:
            self.placement.hold(resolution.members)
        return Lease(self, shared)

    def again(self, resolution: Resolution) -> Resolution:
        """The same revisions referenced once more, for another lease, whatever their names mean by now."""
        assert not resolution.dropped
        self.refer(resolution.members)
        if resolution.variant is not None:
            resolution.variant.refer()
        return replace(resolution, leased=False)

    def drop(self, resolution: Resolution) -> None:
        """Give a resolution's references back, once."""
        if resolution.dropped:
            return
        resolution.dropped = True
        if resolution.variant is not None:
            resolution.variant.release()
        elif resolution.leased:
            self.placement.release(resolution.members)
        for revision in resolution.members:
            revision.references -= 1
            if not revision.references:
                self.changed()

    async def _acquire(self, members: Sequence[Revision]) -> None:
        restored: set[str] = set()
        while True:
            try:
                return await self.placement.acquire(members)
            except SourceMissing:
                lost = [r.digest for r in members if r.pages is None and r.digest not in restored]
                if not lost:
                    raise
                for digest in lost:  # not in line: whoever waits behind has nothing to do with it
                    await self._restore(digest)
                restored.update(lost)

    # Moving them by hand.

    async def prefetch(self, digest: str) -> None:
        """Bring a revision in: to the device if idle ones can make room there, else to host memory.

        Raises:
            AdapterTooLarge: pinned ones leave it no room on the device.
            AdapterInUse: running requests leave it none, and host memory doesn't keep it.
            AdapterNotFound, SourceMissing, ArtifactError: its files are gone or damaged.
        """
        revision = self.revision(digest)
        if revision.pages is not None:
            return
        packed = await self._with_files(digest, lambda: asyncio.shield(self.tiers.load(digest)))
        if await self.placement.offer(revision, packed):
            return
        self.placement.check_fits([revision])
        if not self.tiers.bytes_of(digest):
            raise AdapterInUse(
                "there is no room for it now: running requests take the adapter memory, and the host memory "
                "that caches adapters does not hold it (--adapter-cache-memory)"
            )

    async def _with_files(self, digest: str, bring: Callable[[], Awaitable[T]]) -> T:
        """Do what reads a revision; where its files are missing they are fetched again first."""
        try:
            return await bring()
        except SourceMissing:
            await self._restore(digest)
            return await bring()

    async def offer(self, packed: PackedAdapter) -> None:
        """Take what was just packed, to the device if idle ones can make room there."""
        self.tiers.keep(packed)
        await self.placement.offer(self.revision(packed.digest), packed)

    async def evict(self, digests: Sequence[str]) -> int:
        """Take revisions off the device and out of host memory; returns the device bytes freed.

        Raises:
            AdapterInUse: one is pinned, or a request holds it.
        """
        revisions = [self._revisions[digest] for digest in digests if digest in self._revisions]
        running = self.references(digests)
        if running:
            raise AdapterInUse(f"{running} requests run with it or wait for it")
        if any(revision.pinned for revision in revisions):
            raise AdapterInUse("it is pinned: unpin it first")
        for digest in digests:
            self.tiers.drop(digest)
        return sum([await self.placement.remove(revision) for revision in revisions])

    def pin(self, digests: Collection[str]) -> list[asyncio.Future[None]]:
        """Keep exactly these on the device from now on; the results tell when those that lack are there."""
        self._pinned = frozenset(digests)
        for revision in self._revisions.values():
            revision.pinned = revision.digest in self._pinned
        lacking = [self.revision(digest) for digest in sorted(self._pinned)]
        return [self._bring(revision) for revision in lacking if revision.pages is None]

    async def make_resident(self, digest: str) -> None:
        """Bring a revision to the device, waiting for room if need be.

        Raises:
            AdapterTooLarge: it can't be there beside what is pinned.
            AdapterNotFound, SourceMissing, ArtifactError: its files are gone or damaged.
        """
        revision = self.revision(digest)
        if revision.pages is None:
            await self._with_files(digest, lambda: self.placement.bring(revision))

    def _bring(self, revision: Revision) -> asyncio.Future[None]:
        def tell(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                logger.warning("a pinned adapter is not resident: %s", error)

        future = self.placement.bring(revision)
        future.add_done_callback(tell)
        return future

    # Freeing.

    def changed(self) -> None:
        """Let whoever waits for references to end, or for a name to change, look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait_until(self, condition: Callable[[], bool], deadline: float | None = None) -> bool:
        """Wait until ``condition`` holds, looking whenever something has changed; says whether it does.

        ``deadline`` is on the clock of :func:`time.monotonic`.
        """
        while not condition() and not self._closing:
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                return False
            change = asyncio.get_running_loop().create_future()
            self._waiting.append(change)
            await asyncio.wait({change}, timeout=left)
        return condition()

    def retire(self, digest: str) -> asyncio.Task[int]:
        """Free a revision that no name has, once no request holds it. The result: device bytes freed."""
        task = self._retiring.get(digest)
        if task is None:
            task = self._retiring[digest] = asyncio.create_task(self._retire(digest))
        return task

    @property
    def num_retiring(self) -> int:
        """Revisions that no name has and that are not freed yet."""
        return len(self._retiring)

    async def _retire(self, digest: str) -> int:
        freed = 0
        try:
            while not self._is_held(digest):
                await self.wait_until(lambda: self._is_held(digest) or not self.references([digest]))
                if self._is_held(digest) or self.references([digest]):  # the latter when closing
                    break
                freed += await self._free(digest)
                if digest not in self._revisions:
                    break
            return freed
        finally:
            del self._retiring[digest]

    async def _free(self, digest: str) -> int:
        """Drop a nameless, unused revision everywhere; returns the device bytes freed.

        It may be given a name again meanwhile: then it stays on disk, and may be requested.
        """
        revision = self.revision(digest)
        revision.gone = True  # nothing but a request brings it in from now on
        self.tiers.drop(digest)
        freed = await self.placement.remove(revision)
        try:
            await self.tiers.run(self._library.reclaim, digest)
        except AdapterError as error:  # the name is gone and the memory free: that is what was asked for
            logger.warning("the stored copy of revision %s stays: %s", digest[:SHOWN_DIGITS], error)
        revision.gone = not self._is_held(digest)
        if revision.gone:
            del self._revisions[digest]
        return freed

    def check(self) -> None:
        """Assert that references and memory balance."""
        self.placement.check()
        self.tiers.check()
        assert all(0 <= r.leases <= r.references for r in self._revisions.values())

    def stop_waiting(self) -> None:
        """Let nobody wait for running requests any more."""
        self._closing = True
        self.changed()

    async def close(self) -> None:
        """Stop background work."""
        await self.placement.close()
        for task in self._retiring.values():
            task.cancel()
        await asyncio.gather(*self._retiring.values(), return_exceptions=True)
        await self.tiers.close()
