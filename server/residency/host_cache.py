"""From where an adapter comes when it is not on the device: host memory, else disk.

Packed adapters that were read stay in host memory as long as its budget allows, least recently used
first out. Reading and packing run in two threads of their own, at a lower priority than the engine's,
so neither the event loop nor a running step waits for them; requests for the same revision share one
read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from cachetools import Cache, LRUCache

from manylora.server.metrics.metrics import Metrics
from manylora.server.model.pages.pool import PackedAdapter
from manylora.server.threads import yielding_pool

T = TypeVar("T")

_WORKERS = 2  # revisions read at the same time


class HostCache:
    """Packed adapters by digest. Everything but the reading itself happens on the event loop."""

    def __init__(self, read: Callable[[str], PackedAdapter], *, memory_bytes: int, metrics: Metrics) -> None:
        """``read`` brings a revision in from disk, in a worker thread; ``memory_bytes`` may be 0."""
        self._read = read
        self._metrics = metrics
        self.memory_bytes = memory_bytes
        self._kept: LRUCache[str, PackedAdapter] = LRUCache(memory_bytes, getsizeof=_size)
        self.changes = 0  # of what is kept, so far
        self._reading: dict[str, asyncio.Future[PackedAdapter]] = {}
        self._unwanted: set[str] = set()  # being read, and not to be kept
        self._workers = yielding_pool(_WORKERS, "adapters")
        self._mover = yielding_pool(1, "pages")

    @property
    def used_bytes(self) -> int:
        """Bytes of host memory that kept adapters take."""
        return int(self._kept.currsize)

    @property
    def num_reading(self) -> int:
        """Revisions that are being read or wait to be."""
        return len(self._reading)

    def bytes_of(self, digest: str) -> int:
        """Bytes of host memory that a revision takes; 0 if it isn't kept there."""
        if digest not in self._kept:
            return 0
        return _size(Cache.__getitem__(self._kept, digest))  # unlike LRUCache's own, it is no use

    def load(self, digest: str) -> asyncio.Future[PackedAdapter]:
        """The packed revision, soon. The future is shared: shield it where you can be cancelled."""
        packed = self._kept.get(digest)
        if packed is not None:
            self._metrics.adapters.found("memory").inc()
            done: asyncio.Future[PackedAdapter] = asyncio.get_running_loop().create_future()
            done.set_result(packed)
            return done
        if digest not in self._reading:
            task = self._reading[digest] = asyncio.ensure_future(self._load(digest))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may have no reader
        return self._reading[digest]

    def keep(self, packed: PackedAdapter) -> None:
        """Put a revision into host memory if the budget allows it."""
        if packed.digest not in self._kept and _size(packed) <= self.memory_bytes:
            self._kept[packed.digest] = packed
            self.changes += 1

    def drop(self, digest: str) -> int:
        """Forget a revision; returns the bytes of host memory freed."""
        if digest in self._reading:
            self._unwanted.add(digest)
        packed = self._kept.pop(digest, None)
        self.changes += 1
        return 0 if packed is None else _size(packed)

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Run ``work`` that takes milliseconds in a thread that does not read: it would wait there."""
        return await asyncio.get_running_loop().run_in_executor(self._mover, work, *args)

    def check(self) -> None:
        """Assert that the bytes add up and stay within the budget."""
        assert self.used_bytes == sum(self.bytes_of(digest) for digest in self._kept)
        assert self.used_bytes <= self.memory_bytes

    async def close(self) -> None:
        """Wait for the reads that have begun, and end the threads."""
        await asyncio.gather(*self._reading.values(), return_exceptions=True)
        self._workers.shutdown()
        self._mover.shutdown()

    async def _load(self, digest: str) -> PackedAdapter:
        began = monotonic()
        try:
            packed = await asyncio.get_running_loop().run_in_executor(self._workers, self._read, digest)
            self._metrics.adapters.found("disk").inc()
            self._metrics.adapters.loaded("disk", monotonic() - began)
            if digest not in self._unwanted:
                self.keep(packed)
            return packed
        finally:
            del self._reading[digest]
            self._unwanted.discard(digest)


def _size(packed: PackedAdapter) -> int:
    return packed.data.nbytes
