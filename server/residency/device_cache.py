"""Which revisions are on the device: a line for those that need room, least-recently-used eviction.

Everything here runs on the event loop except reading, packing (:mod:`~manylora.server.residency.host_cache`) and
copying, which run in worker threads. Pages are written or given back only while no lease covers them, so
a running step never sees them change and the engine needs no part in it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic

from manylora.adapters.errors import AdapterTooLarge
from manylora.server.errors import QueueFull
from manylora.server.kernels.inputs import AdapterPages
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.pages.pool import PackedAdapter, PagePool
from manylora.server.residency.host_cache import Tiers
from manylora.server.residency.revision import Revision

_PATIENCE = (
    0.25  # seconds the first in line waits for room before requests for resident adapters queue behind it
)
_AHEAD = 4  # sets in line whose members are read already; what they hold in memory is bounded by that


@dataclass(eq=False)
class _Waiter:
    members: tuple[Revision, ...]
    granted: asyncio.Future[None]
    since: float | None = None  # when it was first found that there is no room
    brief: bool = False  # wants its members to be resident, and to hold them no longer than that
    loads: dict[str, asyncio.Future[PackedAdapter]] = field(default_factory=dict)  # of missing members


class Placement:
    """Grants sets of revisions their place on the device, all members of a set at once.

    Sets are granted in order of arrival once one has to wait; a set whose members are all resident
    passes at once unless the first in line has lost patience. Granting all members together is what
    makes a deadlock between half-granted sets impossible.
    """

    def __init__(
        self, pool: PagePool, tiers: Tiers, *, metrics: Metrics | None = None, max_waiting: int = 1024
    ) -> None:
        """``tiers`` brings in what is not on the device; ``max_waiting`` bounds the line."""
        self._max_waiting = max_waiting
        self._pool = pool
        self._tiers = tiers
        self._metrics = Metrics() if metrics is None else metrics
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

    def is_resident(self, digest: str) -> bool:
        """Whether a revision's pages are on the device, and complete."""
        return digest in self._resident

    @property
    def pinned_bytes(self) -> int:
        """Device bytes that pinned revisions take."""
        return sum(r.nbytes for r in self._resident.values() if r.pinned)

    async def acquire(self, members: Sequence[Revision]) -> None:
        """Wait until every member is resident and hold them there. Cancelling gives up the place in line.

        Raises:
            QueueFull: as many requests as may wait already wait for adapters.
            AdapterTooLarge: the members can't be on the device together, beside what is pinned there.
            AdapterError: one of them can't be read.
        """
        if self._all_resident(members) and not self._must_queue():
            self.hold(members)
            self._metrics.adapter_hit("device", len(members))
            return
        if len(self._line) >= self._max_waiting:
            raise QueueFull(f"{len(self._line)} requests wait for adapters; try again later", 1.0)
        waiter = self._join(members)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and not waiter.granted.exception():
                self.release(waiter.members)  # granted in the moment of cancellation
            self._released.set()  # the line need not wait for room on its behalf
            raise

    def bring(self, revision: Revision) -> asyncio.Future[None]:
        """Line up to make a revision resident without holding it; the result tells when, or why not."""
        granted = self._join([revision], brief=True).granted
        granted.add_done_callback(lambda done: done.cancelled() or done.exception())  # if nobody asks
        return granted

    def release(self, members: Sequence[Revision]) -> None:
        """End one hold on each member."""
        for revision in members:
            revision.leases -= 1
        self._released.set()

    async def offer(self, revision: Revision, packed: PackedAdapter) -> bool:
        """Make a revision resident if evicting unused ones makes room; says whether it is."""
        async with self._placing:
            revision.nbytes = packed.data.nbytes
            if revision.pages is None and not revision.gone and self._reserve([(revision, packed)], keep=()):
                await self._write([(revision, packed)])
                self.release([revision])
            return revision.pages is not None

    async def remove(self, revision: Revision) -> int:
        """Take a revision that no request holds off the device; returns the bytes freed.

        It may be on its way in for a request that was cancelled meanwhile: that is waited for. If a
        request has come to hold it by then, it stays.
        """
        async with self._placing:
            return 0 if revision.leases else self.evict(revision)

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
        return all(r.digest in self._resident for r in members)

    def _must_queue(self) -> bool:
        """Whether the first in line has waited too long for room; a read that takes long is no reason."""
        since = self._line[0].since if self._line else None
        return since is not None and monotonic() - since > _PATIENCE

    def hold(self, members: Sequence[Revision]) -> None:
        """Begin one hold on each member, all of which are resident."""
        for revision in members:
            revision.leases += 1
            self._resident.move_to_end(revision.digest)

    def _join(self, members: Sequence[Revision], *, brief: bool = False) -> _Waiter:
        waiter = _Waiter(tuple(members), asyncio.get_running_loop().create_future(), brief=brief)
        self._line.append(waiter)
        self._read_ahead()
        if self._loader is None or self._loader.done():
            self._loader = asyncio.create_task(self._serve_line())
        return waiter

    def _read_ahead(self) -> None:
        """Begin to read what the first sets in line lack, so that it is there when their turn comes."""
        for waiter in islice(self._line, _AHEAD):
            if not waiter.granted.done():
                self._read_missing(waiter)

    def _read_missing(self, waiter: _Waiter) -> None:
        for revision in waiter.members:
            if revision.pages is None and revision.digest not in waiter.loads:
                waiter.loads[revision.digest] = self._tiers.load(revision.digest)

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
                self._read_ahead()

    async def _serve(self, waiter: _Waiter) -> None:
        while not waiter.granted.done():
            self._read_missing(waiter)
            packed = {digest: await asyncio.shield(load) for digest, load in waiter.loads.items()}
            async with self._placing:
                self._released.clear()
                progress = await self._place(waiter, packed)
            if not progress:
                waiter.since = monotonic() if waiter.since is None else waiter.since
                await self._released.wait()

    async def _place(self, waiter: _Waiter, packed: Mapping[str, PackedAdapter]) -> bool:
        """Try to make room for a whole set and grant it; False if only a release can help."""
        if waiter.granted.done():  # cancelled while its members were read
            return True
        if waiter.brief and any(r.gone for r in waiter.members):
            return waiter.granted.cancel()
        resident = [r for r in waiter.members if r.pages is not None]
        missing = [(r, packed[r.digest]) for r in waiter.members if r.pages is None and r.digest in packed]
        if len(missing) + len(resident) < len(waiter.members):
            return True  # one was evicted while another was read: read it too
        for revision, found in missing:
            revision.nbytes = found.data.nbytes
        self.check_fits(waiter.members)
        if self._reserve(missing, keep=resident):
            self.hold(resident)
            await self._write(missing)
            self._grant(waiter)
            return True
        return self._make_way(waiter, resident)

    def check_fits(self, members: Sequence[Revision]) -> None:
        """Refuse a set that could wait for ever.

        Raises:
            AdapterTooLarge: it takes more than the device has for adapters that are not pinned.
        """
        needed = sum(r.nbytes for r in members)
        pinned = sum(r.nbytes for r in self._resident.values() if r.pinned and r not in members)
        if needed + pinned > self.capacity_bytes:
            beside = f", of which {pinned} are taken by pinned adapters" if pinned else ""
            raise AdapterTooLarge(
                f"this mix needs {needed} bytes of adapter memory, the server has {self.capacity_bytes}"
                f"{beside}"
            )

    def _make_way(self, waiter: _Waiter, resident: Sequence[Revision]) -> bool:
        """Resolve what no release would: free room that is enough but in pieces. Says whether it helped."""
        idle = [r for r in resident if not r.leases]
        for revision in idle:  # its own idle members may be what splits the free room
            self.evict(revision)
        if idle or any(r.leases for r in self._resident.values()):
            return bool(idle)
        pinned = [r for r in self._resident.values() if r not in waiter.members]
        for revision in pinned:  # nobody runs, so only these are left: they step aside and come back
            self.evict(revision)
            self.bring(revision)
        return bool(pinned)

    def _grant(self, waiter: _Waiter) -> None:
        cancelled = waiter.granted.done()  # while its pages were written
        if cancelled or waiter.brief:
            self.release(waiter.members)
        if not cancelled:
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
            idle = (r for r in self._resident.values() if not (r.leases or r.pinned) and r not in keep)
            victim = next(idle, None)
            if victim is None:
                return None
            self.evict(victim)
            self._metrics.adapter_evicted()
        return pages

    async def _write(self, reserved: Sequence[tuple[Revision, PackedAdapter]]) -> None:
        """Copy reserved revisions in; from then on they are resident."""
        for revision, packed in reserved:
            assert revision.pages is not None
            await self._tiers.run(self._pool.write, revision.pages, packed)
            self._resident[revision.digest] = revision
