"""From where an adapter comes when it is not on the device: host memory, else disk.

Packed adapters that were read stay in host memory as long as its budget allows, least recently used
first out. Reading and packing run in two threads of their own, at a lower priority than the engine's,
so neither the event loop nor a running step waits for them; requests for the same revision share one
read.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from manylora.server.metrics.metrics import Metrics
from manylora.server.model.pages.pool import PackedAdapter
from manylora.server.threads import yielding_pool

T = TypeVar("T")

_WORKERS = 2  # revisions read at the same time


class Tiers:
    """Packed adapters by digest. Everything but the reading itself happens on the event loop."""

    def __init__(self, read: Callable[[str], PackedAdapter], *, memory_bytes: int, metrics: Metrics) -> None:
        """``read`` brings a revision in from disk, in a worker thread; ``memory_bytes`` may be 0."""
        self._read = read
        self._metrics = metrics
        self.memory_bytes = memory_bytes
        self._kept: OrderedDict[str, PackedAdapter] = OrderedDict()  # least recently used first
        self._used = 0
        self._reading: dict[str, asyncio.Future[PackedAdapter]] = {}
        self._unwanted: set[str] = set()  # being read, and not to be kept
        self._workers = yielding_pool(_WORKERS, "adapters")
        self._mover = yielding_pool(1, "pages")

    @property
    def used_bytes(self) -> int:
        """Bytes of host memory that kept adapters take."""
        return self._used

    @property
    def num_reading(self) -> int:
        """Revisions that are being read or wait to be."""
        return len(self._reading)

    def bytes_of(self, digest: str) -> int:
        """Bytes of host memory that a revision takes; 0 if it isn't kept there."""
        packed = self._kept.get(digest)
        return 0 if packed is None else packed.data.nbytes

    def load(self, digest: str) -> asyncio.Future[PackedAdapter]:
        """The packed revision, soon. The future is shared: shield it where you can be cancelled."""
        packed = self._kept.get(digest)
        if packed is not None:
            self._kept.move_to_end(digest)
            self._metrics.adapter_hit("memory")
            done: asyncio.Future[PackedAdapter] = asyncio.get_running_loop().create_future()
            done.set_result(packed)
            return done
        if digest not in self._reading:
            task = self._reading[digest] = asyncio.ensure_future(self._load(digest))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may have no reader
        return self._reading[digest]

    def keep(self, packed: PackedAdapter) -> None:
        """Put a revision into host memory if the budget allows it."""
        size = packed.data.nbytes
        if packed.digest in self._kept or size > self.memory_bytes:
            return
        self._kept[packed.digest] = packed
        self._used += size
        while self._used > self.memory_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._used -= oldest.data.nbytes

    def drop(self, digest: str) -> int:
        """Forget a revision; returns the bytes of host memory freed."""
        if digest in self._reading:
            self._unwanted.add(digest)
        packed = self._kept.pop(digest, None)
        size = 0 if packed is None else packed.data.nbytes
        self._used -= size
        return size

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Run ``work`` that takes milliseconds in a thread that does not read: it would wait there."""
        return await asyncio.get_running_loop().run_in_executor(self._mover, work, *args)

    def check(self) -> None:
        """Assert that the bytes add up and stay within the budget."""
        assert self._used == sum(packed.data.nbytes for packed in self._kept.values())
        assert self._used <= self.memory_bytes

    async def close(self) -> None:
        """Wait for the reads that have begun, and end the threads."""
        await asyncio.gather(*self._reading.values(), return_exceptions=True)
        self._workers.shutdown()
        self._mover.shutdown()

    async def _load(self, digest: str) -> PackedAdapter:
        began = monotonic()
        try:
            packed = await asyncio.get_running_loop().run_in_executor(self._workers, self._read, digest)
            self._metrics.adapter_hit("disk")
            self._metrics.adapter_read("disk", monotonic() - began)
            if digest not in self._unwanted:
                self.keep(packed)
            return packed
        finally:
            del self._reading[digest]
            self._unwanted.discard(digest)
