"""Which revisions are on the device: a queue for those that need room, least-recently-used eviction.

Everything here runs on the event loop except reading, packing and copying, which run in worker threads. Pages
are written or given back only while no holder may run with them, so a running step never sees them change and
the engine needs no part in it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from time import monotonic

from manylora.server.engine.clients import Client
from manylora.server.engine.order.turns import NO_TENANT, Asker, Turns
from manylora.server.errors import QueueFull
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.pages.pool import PackedAdapter, PagePool
from manylora.server.residency.device_room import DeviceRoom, Packed
from manylora.server.residency.host_cache import HostCache
from manylora.server.residency.revision import Revision
from manylora.server.residency.waiting_sets import Waiter, WaitingSets

PATIENCE_SECONDS = (
    0.25  # that the first in the queue waits for room before requests for resident adapters queue behind it
)
_AHEAD = 4  # sets in the queue whose members are read already; bounds what they hold in memory
_LOOK_SECONDS = 0.02  # after which one looks whose turn it is, though no room has become free


class DeviceCache:
    """Grants sets of revisions their place on the device, all members of a set at once.

    Sets are granted in order once one has to wait: of arrival, or of turns where tenants wait. A set whose
    members are all resident passes at once unless the first in the queue has waited too long, and goes
    before it. Granting all members together is what makes a deadlock between half-granted sets impossible.
    """

    def __init__(
        self,
        pool: PagePool,
        host: HostCache,
        *,
        metrics: Metrics | None = None,
        max_waiting: int = 1024,
        turns: Turns | None = None,
    ) -> None:
        """``host`` brings in what is not on the device; ``max_waiting`` bounds the queue, in ``turns``."""
        self._max_waiting = max_waiting
        self._pool = pool
        self._host = host
        told = (Metrics() if metrics is None else metrics).adapters
        self._found = told.found("device")
        self.capacity_bytes = pool.capacity_bytes
        self._room = DeviceRoom(pool, told)
        self._queue = WaitingSets(turns)
        self._released = asyncio.Event()
        self._loader: asyncio.Task[None] | None = None
        self._reserving = asyncio.Lock()  # from choosing the room until the pages are in it

    @property
    def num_waiting(self) -> int:
        """Sets that wait: for their turn, for a read or for room."""
        return len(self._queue)

    @property
    def lacks_room(self) -> bool:
        """Whether the first in the queue was read and found no room."""
        first = self._queue.first()
        return first is not None and first.since is not None

    @property
    def num_resident(self) -> int:
        return len(self._room)

    @property
    def resident_bytes(self) -> int:
        return self._room.used_bytes

    @property
    def changes(self) -> int:
        """How often a revision has come or gone so far."""
        return self._room.changes

    @property
    def element_bytes(self) -> int:
        """Bytes of one weight of an adapter on the device."""
        return self._pool.data.element_size()

    def is_resident(self, digest: str) -> bool:
        """Whether a revision's pages are on the device, and complete."""
        return digest in self._room

    def resident_digests(self) -> list[str]:
        """The revisions whose pages are on the device, and complete."""
        return [revision.digest for revision in self._room]

    @property
    def pinned_bytes(self) -> int:
        """Device bytes that pinned revisions take."""
        return self._room.pinned_bytes

    def try_acquire(self, members: Sequence[Revision], asker: Asker = NO_TENANT) -> bool:
        """Hold every member on the device if that needs no waiting; says whether it does."""
        if not self._all_resident(members) or self._must_queue(asker):
            return False
        self.hold(members, asker.client)
        self._found.inc(len(members))
        return True

    async def acquire(self, members: Sequence[Revision], asker: Asker = NO_TENANT) -> None:
        """Wait until every member is resident and hold them there. Cancelling leaves the queue.

        Raises:
            QueueFull: as many requests as may wait already wait for adapters.
            AdapterTooLarge: the members can't be on the device together, beside what is pinned there.
            AdapterError: one of them can't be read.
        """
        if self.try_acquire(members, asker):
            return
        if len(self._queue) >= self._max_waiting:
            raise QueueFull(f"{len(self._queue)} requests wait for adapters; try again later", 1.0)
        waiter = self._join(members, asker)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and not waiter.granted.exception():
                self.release(waiter.members)  # granted in the moment of cancellation
            self._queue.remove(waiter)
            self._released.set()  # the queue need not wait for room on its behalf
            raise

    def bring(self, revision: Revision) -> asyncio.Future[None]:
        """Queue to make a revision resident without holding it; the result tells when, or why not."""
        granted = self._join([revision], only_to_load=True).granted
        granted.add_done_callback(lambda done: done.cancelled() or done.exception())  # if nobody asks
        return granted

    def release(self, members: Sequence[Revision]) -> None:
        """End one hold on each member."""
        for revision in members:
            revision.admitted -= 1
        self._released.set()

    async def offer(self, revision: Revision, packed: PackedAdapter) -> bool:
        """Make a revision resident if evicting unused ones makes room; says whether it is."""
        async with self._reserving:
            revision.nbytes = packed.data.nbytes
            wanted = [(revision, packed)]
            wants = revision.pages is None and not revision.gone
            if wants and self._reserve(wanted, keep=self._room.guaranteed()):
                await self._write(wanted)
                self.release([revision])
            return revision.pages is not None

    async def remove(self, revision: Revision) -> int:
        """Take a revision that no request holds off the device; returns the bytes freed.

        It may be on its way in for a request that was cancelled meanwhile: that is waited for. If a
        request has come to hold it by then, it stays.
        """
        async with self._reserving:
            return 0 if revision.admitted else self.evict(revision)

    def evict(self, revision: Revision) -> int:
        """Take a revision that nobody may run with off the device; returns the bytes freed."""
        assert not revision.admitted
        if revision.pages is None:
            return 0
        self._released.set()
        return self._room.evict(revision)

    def check(self) -> None:
        """Assert that pool and residents agree."""
        self._room.check()

    async def close(self) -> None:
        """Stop loading."""
        if self._loader is not None:
            self._loader.cancel()
            await asyncio.gather(self._loader, return_exceptions=True)

    def _all_resident(self, members: Sequence[Revision]) -> bool:
        return all(r.digest in self._room for r in members)

    def _must_queue(self, asker: Asker) -> bool:
        """Whether the first in the queue has waited too long for room, not for a read, and goes first."""
        first = self._queue.first() if self._queue else None
        if first is None or first.since is None or monotonic() - first.since <= PATIENCE_SECONDS:
            return False
        return self._queue.goes_before(first, asker)

    def hold(self, members: Sequence[Revision], client: Client) -> None:
        """Begin one hold on each member, all of which are resident, for a request of ``client``."""
        for revision in members:
            revision.admitted += 1
        self._room.use(members, client)

    def _join(
        self, members: Sequence[Revision], asker: Asker = NO_TENANT, *, only_to_load: bool = False
    ) -> Waiter:
        granted = asyncio.get_running_loop().create_future()
        waiter = Waiter(tuple(members), granted, asker, only_to_load=only_to_load)
        self._queue.append(waiter)
        if self._queue.contended:
            self._released.set()  # it may be the first
        self._read_ahead()
        if self._loader is None or self._loader.done():
            self._loader = asyncio.create_task(self._serve_queue())
        return waiter

    def _read_ahead(self) -> None:
        """Begin to read what the first sets in the queue lack, so that it is there when their turn comes."""
        for waiter in self._queue.ahead(_AHEAD):
            if not waiter.granted.done():
                self._read_missing(waiter)
        for waiter in self._queue.behind(_AHEAD):
            waiter.loads.clear()

    def _read_missing(self, waiter: Waiter) -> None:
        for revision in waiter.members:
            if revision.pages is None and revision.digest not in waiter.loads:
                waiter.loads[revision.digest] = self._host.load(revision.digest)

    async def _serve_queue(self) -> None:
        while (waiter := self._queue.first()) is not None:
            try:
                progress = await self._serve(waiter)
            except Exception as error:  # reading failed: only this set is concerned
                progress = True
                if not waiter.granted.done():
                    waiter.granted.set_exception(error)
            if waiter.granted.done():
                self._queue.remove(waiter)
                self._read_ahead()
            elif not progress:
                waiter.since = monotonic() if waiter.since is None else waiter.since
                await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        """Wait until room may have become free, or it may be another's turn."""
        limit = _LOOK_SECONDS if self._queue.contended else None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._released.wait(), limit)

    async def _serve(self, waiter: Waiter) -> bool:
        """Try to grant a set; False if only a release can help."""
        self._read_missing(waiter)
        packed = {digest: await asyncio.shield(load) for digest, load in tuple(waiter.loads.items())}
        async with self._reserving:
            self._released.clear()
            return await self._place(waiter, packed)

    async def _place(self, waiter: Waiter, packed: Mapping[str, PackedAdapter]) -> bool:
        """Try to make room for a whole set and grant it; False if only a release can help."""
        if waiter.granted.done():  # cancelled while its members were read
            return True
        if waiter.only_to_load and any(r.gone for r in waiter.members):
            return waiter.granted.cancel()
        resident = [r for r in waiter.members if r.pages is not None]
        missing = [(r, packed[r.digest]) for r in waiter.members if r.pages is None and r.digest in packed]
        if len(missing) + len(resident) < len(waiter.members):
            return True  # one was evicted while another was read: read it too
        for revision, found in missing:
            revision.nbytes = found.data.nbytes
        self.check_fits(waiter.members)
        client = waiter.asker.client
        if self._reserve(missing, keep=resident, spared=self._room.spared(waiter.members, client)):
            for revision in resident:
                revision.admitted += 1
            await self._write(missing)
            if not waiter.only_to_load:
                self._room.use(waiter.members, client)
            self._grant(waiter)
            return True
        return self._make_way(waiter, resident)

    def check_fits(self, members: Sequence[Revision]) -> None:
        """Raise :class:`AdapterTooLarge` for a set that could wait for ever."""
        self._room.check_fits(members)

    def _make_way(self, waiter: Waiter, resident: Sequence[Revision]) -> bool:
        """Resolve what no release would: free room that is enough but in pieces. Says whether it helped."""
        idle = [r for r in resident if not r.admitted]
        for revision in idle:  # its own idle members may be what splits the free room
            self.evict(revision)
        if idle or any(r.admitted for r in self._room):
            return bool(idle)
        pinned = [r for r in self._room if r not in waiter.members]
        for revision in pinned:  # nobody runs, so only these are left: they step aside and come back
            self.evict(revision)
            self.bring(revision)
        return bool(pinned)

    def _grant(self, waiter: Waiter) -> None:
        cancelled = waiter.granted.done()  # while its pages were written
        if cancelled or waiter.only_to_load:
            self.release(waiter.members)
        if not cancelled:
            waiter.granted.set_result(None)

    def _reserve(
        self, wanted: Packed, *, keep: Collection[Revision] = (), spared: Collection[Revision] = ()
    ) -> bool:
        before = len(self._room)
        done, aside = self._room.reserve(wanted, keep=keep, spared=spared)
        if len(self._room) < before:
            self._released.set()  # the next try may find the room that this one has made
        for revision in aside:
            self.bring(revision)
        return done

    async def _write(self, reserved: Packed) -> None:
        """Copy reserved revisions in; from then on they are resident."""
        for revision, packed in reserved:
            assert revision.pages is not None
            await self._host.run(self._pool.write, revision.pages, packed)
            self._room.add(revision)
