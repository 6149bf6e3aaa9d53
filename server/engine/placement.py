"""Which revisions are on the device: a line for those that need room, least-recently-used eviction.

Everything here runs on the event loop except reading, packing and copying, which run in worker
threads. Pages are written or given back only while no lease covers them, so a running step never
sees them change and the engine needs no part in it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from server.errors import QueueFull
from server.kernels.inputs import AdapterPages
from server.model.pages import PackedAdapter, PagePool

_PATIENCE = (
    0.25  # seconds the first in line waits for room before requests for resident adapters queue behind it
)


@dataclass(eq=False)
class Revision:
    """Immutable weights on disk, possibly on the device. One object per digest."""

    digest: str
    directory: Path
    rank: int  # the largest of its modules
    modules: int
    nbytes: int  # on the device
    names: set[str] = field(default_factory=set)  # registered names that point here
    references: int = 0  # resolved requests that have not ended, running or waiting for room
    leases: int = 0  # those among them that may run: its pages must stay
    pages: AdapterPages | None = None


@dataclass(eq=False)
class _Waiter:
    members: tuple[Revision, ...]
    granted: asyncio.Future[None]
    since: float


class Placement:
    """Grants sets of revisions their place on the device, all members of a set at once.

    Sets are granted in order of arrival once one has to wait; a set whose members are all resident
    passes at once unless the first in line has lost patience. Granting all members together is what
    makes a deadlock between half-granted sets impossible.
    """

    def __init__(
        self, pool: PagePool, read: Callable[[Revision], PackedAdapter], *, max_waiting: int = 1024
    ) -> None:
        """``read`` loads and packs a revision from disk; it is called in worker threads."""
        self._max_waiting = max_waiting
        self._pool = pool
        self._read = read
        self._resident: OrderedDict[str, Revision] = OrderedDict()  # least recently used first
        self._line: deque[_Waiter] = deque()
        self._released = asyncio.Event()
        self._loader: asyncio.Task[None] | None = None
        self._placing = asyncio.Lock()  # from choosing the room until the pages are in it

    @property
    def num_resident(self) -> int:
        return len(self._resident)

    @property
    def resident_bytes(self) -> int:
        return self._pool.used_bytes

    @property
    def capacity_bytes(self) -> int:
        return self._pool.capacity_bytes

    async def acquire(self, members: Sequence[Revision]) -> None:
        """Wait until every member is resident and hold them there. Cancelling gives up the place in line.

        Raises:
            QueueFull: as many requests as may wait already wait for adapters.
        """
        if self._all_resident(members) and not self._must_queue():
            self.hold(members)
            return
        if len(self._line) >= self._max_waiting:
            raise QueueFull(f"{len(self._line)} requests wait for adapters; try again later", 1.0)
        waiter = _Waiter(tuple(members), asyncio.get_running_loop().create_future(), monotonic())
        self._line.append(waiter)
        if self._loader is None or self._loader.done():
            self._loader = asyncio.create_task(self._serve_line())
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and not waiter.granted.exception():
                self.release(waiter.members)  # granted in the moment of cancellation
            self._released.set()  # the line need not wait for room on its behalf
            raise

    def release(self, members: Sequence[Revision]) -> None:
        """End one hold on each member."""
        for revision in members:
            revision.leases -= 1
        self._released.set()

    async def offer(self, revision: Revision, packed: PackedAdapter) -> None:
        """Make a new revision resident if evicting unused ones makes room; else leave it on disk."""
        async with self._placing:
            if revision.pages is None and self._reserve([(revision, packed)], keep=()):
                await self._write([(revision, packed)])
                self.release([revision])

    async def remove(self, revision: Revision) -> int:
        """Take a revision that no request holds off the device; returns the bytes freed.

        It may be on its way in for a request that was cancelled meanwhile: that is waited for.
        """
        async with self._placing:
            return self.evict(revision)

    def evict(self, revision: Revision) -> int:
        """Take a revision without leases off the device; returns the bytes freed."""
        assert not revision.leases
        if revision.pages is None:
            return 0
        pages, revision.pages = revision.pages, None
        del self._resident[revision.digest]
        self._released.set()
        return self._pool.release(pages)

    def check(self) -> None:
        """Assert that pool and residents agree."""
        self._pool.check()
        assert sum(r.nbytes for r in self._resident.values()) == self._pool.used_bytes

    async def close(self) -> None:
        """Stop loading."""
        if self._loader is not None:
            self._loader.cancel()
            await asyncio.gather(self._loader, return_exceptions=True)

    def _all_resident(self, members: Sequence[Revision]) -> bool:
        return all(r.digest in self._resident and r.pages is not None for r in members)

    def _must_queue(self) -> bool:
        return bool(self._line) and monotonic() - self._line[0].since > _PATIENCE

    def hold(self, members: Sequence[Revision]) -> None:
        """Begin one hold on each member, all of which are resident."""
        for revision in members:
            revision.leases += 1
            self._resident.move_to_end(revision.digest)

    async def _serve_line(self) -> None:
        while self._line:
            waiter = self._line[0]
            try:
                await self._serve(waiter)
            except Exception as error:  # reading failed: only this set is concerned
                if not waiter.granted.done():
                    waiter.granted.set_exception(error)
            finally:
                self._line.popleft()

    async def _serve(self, waiter: _Waiter) -> None:
        packed: dict[str, PackedAdapter] = {}
        while not waiter.granted.done():
            for revision in waiter.members:
                if revision.pages is None and revision.digest not in packed:
                    packed[revision.digest] = await asyncio.to_thread(self._read, revision)
            async with self._placing:
                self._released.clear()
                progress = await self._place(waiter, packed)
            if not progress:
                await self._released.wait()

    async def _place(self, waiter: _Waiter, packed: Mapping[str, PackedAdapter]) -> bool:
        """Try to make room for a whole set and grant it; False if only a release can help."""
        if waiter.granted.done():  # cancelled while its members were read
            return True
        resident = [r for r in waiter.members if r.pages is not None]
        missing = [(r, packed[r.digest]) for r in waiter.members if r.pages is None and r.digest in packed]
        if len(missing) + len(resident) < len(waiter.members):
            return True  # one was evicted while another was read: read it too
        if self._reserve(missing, keep=resident):
            self.hold(resident)
            await self._write(missing)
            self._grant(waiter)
            return True
        idle = [r for r in resident if not r.leases]
        for revision in idle:  # its own idle members may be what splits the free room
            self.evict(revision)
        return bool(idle)

    def _grant(self, waiter: _Waiter) -> None:
        if waiter.granted.done():  # cancelled while its pages were written
            self.release(waiter.members)
        else:
            waiter.granted.set_result(None)

    def _reserve(self, wanted: Sequence[tuple[Revision, PackedAdapter]], keep: Sequence[Revision]) -> bool:
        """Take room for all of ``wanted``, evicting idle revisions outside ``keep``; all or nothing."""
        taken: list[tuple[Revision, AdapterPages]] = []
        for revision, packed in wanted:
            pages = self._reserve_one(packed, keep)
            if pages is None:
                for _, earlier in taken:
                    self._pool.release(earlier)
                return False
            taken.append((revision, pages))
        for revision, pages in taken:
            revision.pages = pages
            revision.leases += 1
        return True

    def _reserve_one(self, packed: PackedAdapter, keep: Sequence[Revision]) -> AdapterPages | None:
        while (pages := self._pool.reserve(packed)) is None:
            victim = next((r for r in self._resident.values() if not r.leases and r not in keep), None)
            if victim is None:
                return None
            self.evict(victim)
        return pages

    async def _write(self, reserved: Sequence[tuple[Revision, PackedAdapter]]) -> None:
        """Copy reserved revisions in; from then on they are resident."""
        for revision, packed in reserved:
            assert revision.pages is not None
            await asyncio.to_thread(self._pool.write, revision.pages, packed)
            self._resident[revision.digest] = revision
