"""What the adapter manager is made of, how it starts and stops, and what it does about changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path

from manylora.adapters.format.artifact import Limits
from manylora.adapters.format.base import BaseModel
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.publish import Orphans, reconcile, tend
from manylora.adapters.store.store import RevisionStore
from manylora.server.experiments.experiments import Experiments
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.pages.pool import PagePool
from manylora.server.names.janitor import Upkeep
from manylora.server.names.lookup import Lookup
from manylora.server.names.publishing import Publisher
from manylora.server.names.registry_mirror import Catalogue
from manylora.server.names.registry_sync import Follower
from manylora.server.names.status import Deleted
from manylora.server.names.views import Overview
from manylora.server.residency.device_cache import Placement
from manylora.server.residency.host_cache import Tiers
from manylora.server.residency.references import Holdings
from manylora.server.residency.refetch import Restorer
from manylora.server.residency.revision_loader import Library


class Parts:
    """The parts, put together. Everything that may block runs in threads of theirs."""

    def __init__(
        self,
        *,
        base: BaseModel,
        store: RevisionStore,
        registry: Registry,
        pool: PagePool,
        limits: Limits,
        metrics: Metrics,
        max_waiting: int = 1024,
        memory_bytes: int = 0,
        fetch: Callable[[str, Path], str] | None = None,
        find: Callable[[str], str | None] | None = None,
    ) -> None:
        """Nothing is read until :meth:`start`.

        Args:
            max_waiting: bound on the requests that wait for adapters to be brought in.
            memory_bytes: host memory for packed adapters, on the device or not.
            fetch: ``fetch(source, directory)`` fills a directory from a URL, and returns the URL as it is to
                be recorded; it blocks.
            find: ``find(name)`` says from where to fetch a name that nobody has published; it blocks.
        """
        self.base = base
        self._store = store
        self._registry = registry
        self._metrics = metrics
        self._fetch = fetch
        library = self._library = Library(base, registry, store, pool, limits)
        self._tiers = Tiers(library.read, memory_bytes=memory_bytes, metrics=metrics)
        self._placement = Placement(pool, self._tiers, metrics=metrics, max_waiting=max_waiting)
        self._catalogue = Catalogue(registry, self._note)
        restorer = self._restorer = Restorer(self._catalogue, library, self._run_slowly, fetch, metrics)
        self._holdings = Holdings(
            library, self._tiers, self._placement, is_held=self._catalogue.is_held, restore=restorer.restore
        )
        self._publisher = Publisher(
            self._catalogue, library, self._holdings, registry=registry, store=store, metrics=metrics
        )
        self.experiments = Experiments(self._catalogue, base.name, metrics)
        self._follower = Follower(self._catalogue, self.experiments)
        self._orphans = Orphans(registry, store)
        self._upkeep = Upkeep(
            lambda: self._publisher.run(lambda: tend(registry, store)), self._delete_orphans
        )
        self._overview = Overview(self._catalogue, self._holdings, metrics, self._follower.used)
        self._lookup = Lookup(self._catalogue, find, self._publish_found)
        self._deleting: dict[str, asyncio.Task[Deleted]] = {}  # by name
        self._refused: set[str] = set()  # those among them that the registry does not show as draining yet
        self._pinned: dict[str, str] = {}  # digest by name
        self._arriving: set[asyncio.Future[None]] = set()  # pinned revisions on their way to the device

    async def start(self) -> None:
        """Read the registry and begin to follow it. Returns when pinned adapters are on the device.

        What processes left half done that are dead now is cleaned up first.
        """
        await self._tiers.run(reconcile, self._registry, self._store)
        await self._catalogue.read_all()
        self._follower.start()
        self._upkeep.start()
        await asyncio.gather(*self._arriving, return_exceptions=True)

    async def close(self) -> None:
        """Finish what has begun, and let go of registry and store."""
        await self._upkeep.close()
        await self._lookup.close()
        self._holdings.stop_waiting()
        await asyncio.gather(*self._deleting.values(), return_exceptions=True)
        await self._restorer.close()
        await self._publisher.close()
        await self._holdings.close()
        await self._follower.close()
        await self._catalogue.close()
        self._registry.close()
        self._store.close()

    def check(self) -> None:
        """Assert that references, names and memory balance."""
        self._holdings.check()

    def _note(self, names: Collection[str], orphans: Collection[str]) -> None:
        """Act on what the catalogue has learnt: which names are different, which revisions nameless."""
        pinned = dict(self._pinned)
        for name in names:
            record = self._catalogue.names.get(name)
            if record is None:
                self._metrics.forget(name)
            if record is not None and record.pinned and record.digest is not None:
                pinned[name] = record.digest
            else:
                pinned.pop(name, None)
        if pinned != self._pinned:
            self._pinned = pinned
            for arrival in self._holdings.pin(pinned.values()):
                self._arriving.add(arrival)
                arrival.add_done_callback(self._arriving.discard)
        for digest in orphans:
            self._holdings.retire(digest).add_done_callback(lambda _: self._observe())
        self._holdings.changed()
        self._observe()

    def _observe(self) -> None:
        self._metrics.adapters_registered(len(self._catalogue.names))
        self._metrics.adapters_resident(
            self._placement.num_resident, self._placement.resident_bytes, self._tiers.used_bytes
        )

    async def _delete_orphans(self) -> Collection[str]:
        in_use = self._holdings.in_use()
        return await self._publisher.run(lambda: self._orphans.look(in_use))

    async def _run_slowly(self, work: Callable[[], None]) -> None:
        await self._publisher.run(work)

    async def _publish_found(self, name: str, source: str) -> None:
        fetch = self._fetch
        assert fetch is not None, "what can be found can be fetched"
        await self._publisher.publish_found(name, source, lambda into: fetch(source, into)).done()
