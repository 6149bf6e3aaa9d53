"""A tiny model with an adapter manager over a real revision store."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from manylora.adapters.format.artifact import Limits
from manylora.adapters.mix import parse_mix
from manylora.adapters.registry.records import State
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.store import RevisionStore
from manylora.server.adapter_manager import AdapterManager, AdapterSources
from manylora.server.engine.engine import Engine
from manylora.server.engine.sequence import SamplingParams, Sequence
from manylora.server.kernels.inputs import page_length
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.pages.pool import PagePool
from manylora.server.names.lookup import MISS_SECONDS
from manylora.server.residency.held_mix import HeldMix
from manylora.server.threads import SlowWork
from tests.support.adapters import write_adapter
from tests.support.engine_harness import EngineHarness
from tests.support.waiting import until

RANK = 4
KEPT = 3  # revisions of a name


class ManagerSetup:
    """``room`` is how many adapters of :meth:`write` fit on the device."""

    def __init__(
        self,
        harness: EngineHarness,
        root: Path,
        room: int,
        *,
        memory: int = 0,
        url: str | None = None,
        base_name: str = "base",
        max_rank: int = 64,
        find: Callable[[str], str | None] | None = None,
        fetch: Callable[[str, Path], str] | None = None,
        miss_seconds: float = MISS_SECONDS,
    ) -> None:
        self.harness = harness
        self._ids = itertools.count(1)
        self.root = root
        self.store = RevisionStore(root / "store")
        address = f"sqlite:///{root}/registry.db" if url is None else url
        self.registry = Registry(address, owner=self.store.owner, history=KEPT)
        module = harness.decoder.modules
        pages = sum(page_length(m.in_features) + page_length(m.out_features) for m in module)
        unit = 4 * RANK * pages
        zero = harness.pool.data.numel() * 4 - harness.pool.capacity_bytes
        self.unit = unit
        size, dtype, device = room * unit + zero, torch.float32, torch.device("cpu")
        self.pool = PagePool(module, size, dtype, device, harness.decoder)
        assert self.pool.capacity_bytes == room * unit
        harness.decoder.allocate(self.pool.data, 257, 256)
        self.metrics = Metrics()
        self.manager = AdapterManager(
            base=replace(harness.base, name=base_name),
            store=self.store,
            registry=self.registry,
            pool=self.pool,
            limits=Limits(max_rank=max_rank, max_bytes=1 << 24),
            metrics=self.metrics,
            memory_bytes=memory * unit,
            sources=AdapterSources(fetch, find, miss_seconds),
            slow=SlowWork(),
        )

    def write(self, name: str, seed: int = 0, rank: int = RANK) -> Path:
        """An adapter of one unit on every linear layer."""
        return write_adapter(
            self.root / name, self.harness.base, rank=rank, seed=seed, targets="all-linear", scale=0.2
        )

    async def load(self, *names: str) -> None:
        """Write and load adapters, each with a seed of its own."""
        for name in names:
            await self.manager.admin.load(name, self.write(name, seed=sum(name.encode())))

    async def publish(self, name: str, path: Path, source: str) -> None:
        """Publish the adapter in ``path`` as if it came from ``source``."""

        def fetch(into: Path) -> None:
            shutil.copytree(path, into, dirs_exist_ok=True)

        await (await self.manager.admin.begin_publish(name, fetch, source=source)).done()

    async def resolve(self, expression: str, user: str | None = None) -> HeldMix:
        """What a request holds that has not been admitted yet; whoever has it releases it."""
        async with self.manager.resolve(parse_mix(expression) if expression else (), user=user) as held:
            return held.again()

    async def hold(self, expression: str) -> HeldMix:
        """What a request holds that may run; "" is the base. Whoever has it releases it."""
        async with self.manager.resolve(parse_mix(expression) if expression else ()) as held:
            await held.admit()
            return held.share()

    async def answer(self, expression: str, prompt: tuple[int, ...], engine: Engine) -> list[int]:
        """Greedy tokens of ``expression`` on ``engine``, which is stepped here."""
        held = await self.hold(expression)
        params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
        sequence = Sequence(next(self._ids), prompt, params, held.mix)
        engine.add(sequence)
        while engine.has_work:
            engine.step()
        held.release()
        return sequence.output_ids

    async def until_draining(self, name: str) -> None:
        """Wait until a deletion has begun that another task asked for."""
        await until(lambda: self.manager.views.status(name).state is State.DRAINING)

    async def quiet(self) -> None:
        """Wait until nothing is published or freed any more."""
        await until(lambda: self.manager.is_quiet)

    def check(self) -> None:
        """Assert that nothing is held and everything balances."""
        self.manager.check()
        assert self.manager.residency.references.total == 0


@contextmanager
def open_manager_setup(
    harness: EngineHarness, root: Path, room: int = 4, *, memory: int = 0, **options: Any
) -> Iterator[ManagerSetup]:
    setup = ManagerSetup(harness, root, room, memory=memory, **options)
    try:
        yield setup
    finally:
        setup.registry.close()
        setup.store.close()
        harness.decoder.allocate(harness.pool.data, 257, 256)
