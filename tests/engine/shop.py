"""A tiny model with an adapter manager over a real revision store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from adapters.artifact import Limits
from adapters.mix import parse_mix
from adapters.store import RevisionStore
from server.engine.residency import AdapterManager, Lease
from server.kernels.inputs import page_length
from server.metrics import Metrics
from server.model.pages import PagePool
from tests.adapter_factory import write_adapter
from tests.harness import Harness

RANK = 4


class Shop:
    """``room`` is how many adapters of :meth:`write` fit on the device."""

    def __init__(self, harness: Harness, root: Path, room: int) -> None:
        self.harness = harness
        self.root = root
        self.store = RevisionStore(root / "store")
        module = harness.decoder.modules
        pages = sum(page_length(m.in_features) + page_length(m.out_features) for m in module)
        unit = 4 * RANK * pages
        zero = harness.pool.data.numel() * 4 - harness.pool.capacity_bytes
        self.unit = unit
        self.pool = PagePool(module, room * unit + zero, torch.float32, torch.device("cpu"))
        assert self.pool.capacity_bytes == room * unit
        harness.decoder.allocate(self.pool.data, 257, 256)
        self.metrics = Metrics()
        self.manager = AdapterManager(
            base=harness.base,
            store=self.store,
            pool=self.pool,
            limits=Limits(max_rank=64, max_bytes=1 << 24),
            metrics=self.metrics,
        )

    def write(self, name: str, seed: int = 0, rank: int = RANK) -> Path:
        """An adapter of one unit on every linear layer."""
        return write_adapter(
            self.root / name, self.harness.base, rank=rank, seed=seed, targets="all-linear", scale=0.2
        )

    async def load(self, *names: str) -> None:
        """Write and load adapters, each with a seed of its own."""
        for name in names:
            await self.manager.load(name, self.write(name, seed=sum(name.encode())))

    async def lease(self, expression: str) -> Lease:
        return await self.manager.lease(self.manager.resolve(parse_mix(expression)))

    def check(self) -> None:
        """Assert that nothing is held and everything balances."""
        self.manager.check()
        assert self.manager.num_references == 0


@contextmanager
def open_shop(harness: Harness, root: Path, room: int = 4) -> Iterator[Shop]:
    shop = Shop(harness, root, room)
    try:
        yield shop
    finally:
        shop.store.close()
        harness.decoder.allocate(harness.pool.data, 257, 256)
