"""A placement over a small pool, with revisions whose content tells them apart."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from manylora.adapters.format.base import TargetModule
from manylora.server.engine.order.turns import NO_TENANT, Asker, Turns
from manylora.server.kernels.inputs import AdapterPages
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.pages.pool import PackedAdapter, PagePool
from manylora.server.residency.device_cache import DeviceCache
from manylora.server.residency.host_cache import HostCache
from manylora.server.residency.revision import Revision
from tests.support.waiting import until

UNIT = 64  # elements: one row of A and one column of B of the only module
ZERO_PAGE = 32


class SmallDeviceCache:
    """A placement over ``room`` units, with revisions whose content tells them apart."""

    def __init__(self, room: int, *, memory: int = 0, turns: Turns | None = None) -> None:
        module = TargetModule("q", 32, 32)
        capacity = (room * UNIT + ZERO_PAGE) * 4
        self.pool = PagePool((module,), capacity, torch.float32, torch.device("cpu"))
        assert self.pool.capacity_bytes == room * UNIT * 4
        self.sizes: dict[str, int] = {}  # in units
        self.metrics = Metrics()
        self.host = HostCache(self._read, memory_bytes=memory * UNIT * 4, metrics=self.metrics)
        self.device = DeviceCache(self.pool, self.host, metrics=self.metrics, turns=turns)
        self.reads: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.gate = threading.Event()  # reads wait for it
        self.gate.set()
        self.tries = 0  # times that room was looked for
        reserve = self.pool.reserve

        def counting(packed: PackedAdapter) -> AdapterPages | None:
            self.tries += 1
            return reserve(packed)

        self.pool.reserve = counting  # type: ignore[method-assign]

    def revision(self, digest: str, size: int = 1) -> Revision:
        self.sizes[digest] = size
        return Revision(digest, size * UNIT * 4)

    def _read(self, digest: str) -> PackedAdapter:
        self.reads[digest] += 1
        assert self.gate.wait(30)
        if digest in self.broken:
            raise OSError("gone")
        return self._pack(digest)

    def packed(self, revision: Revision) -> PackedAdapter:
        return self._pack(revision.digest)

    def _pack(self, digest: str) -> PackedAdapter:
        size = self.sizes[digest]
        data = torch.full((size * UNIT,), float(sum(digest.encode())))
        rank = np.array([size], np.int32)
        return PackedAdapter(digest, data, np.zeros(1, np.int64), rank)

    def intact(self, revision: Revision) -> bool:
        """Whether the pool still holds what ``revision`` is."""
        assert revision.pages is not None
        start = revision.pages.start
        data = self.packed(revision).data
        return torch.equal(self.pool.data[start : start + data.numel()], data)

    @contextmanager
    def writing_stopped(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
        """Within it, copies to the device have begun but wait; gives what says that one has begun."""
        begun, proceed = threading.Event(), threading.Event()
        original = self.pool.write

        def write(*args: object) -> None:
            begun.set()
            assert proceed.wait(30)
            original(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(self.pool, "write", write)
        try:
            yield begun
        finally:
            proceed.set()
            monkeypatch.setattr(self.pool, "write", original)


async def waiting_for(
    cache: SmallDeviceCache, *revisions: Revision, asker: Asker = NO_TENANT
) -> asyncio.Task[None]:
    """A task that has asked for ``revisions`` and does not have them."""
    before = cache.device.num_waiting
    task = asyncio.create_task(cache.device.acquire(revisions, asker))
    await until(lambda: cache.device.num_waiting > before)
    assert not task.done()
    return task


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
