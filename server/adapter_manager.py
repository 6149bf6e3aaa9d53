"""Everything a server knows and does about adapters, put together in one place.

A request resolves its model string exactly once. From then on it holds the revisions it found; a name that is
published again or removed meanwhile does not concern it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from manylora.adapters.format.artifact import Limits
from manylora.adapters.format.base import BaseModel
from manylora.adapters.registry.cleanup import UnreferencedRevisions, clean_up, recover
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.store import RevisionStore
from manylora.server.engine.order.turns import Turns
from manylora.server.experiments.experiments import Experiments
from manylora.server.merged.auto_merge import AutoMerge, AutoMergeRules
from manylora.server.merged.copies import MergedCopies
from manylora.server.merged.measuring import MergeMeasure
from manylora.server.merged.variants import MergeError, Variant, Variants
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.pages.pool import PagePool
from manylora.server.names.admin.adapter_admin import AdapterAdmin
from manylora.server.names.admin.alias_admin import AliasAdmin
from manylora.server.names.admin.deletions import Deletions
from manylora.server.names.admin.janitor import Janitor
from manylora.server.names.admin.pins import Pins
from manylora.server.names.admin.publishing import Publisher
from manylora.server.names.lookup import MISS_SECONDS, Lookup
from manylora.server.names.refetch import Refetcher
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.names.registry_sync import RegistrySync
from manylora.server.names.resolve import Copies, Resolver
from manylora.server.names.views import Views
from manylora.server.residency.device_cache import DeviceCache
from manylora.server.residency.held_mix import HeldMix
from manylora.server.residency.host_cache import HostCache
from manylora.server.residency.reclaimer import Reclaimer
from manylora.server.residency.references import References
from manylora.server.residency.residency import Residency
from manylora.server.residency.revision_loader import RevisionLoader
from manylora.server.threads import SlowWork

logger = logging.getLogger(__name__)

_FETCHES = 4  # adapters fetched and checked at the same time
_LOOKUPS = 4  # names for which sources are asked at the same time


@dataclass(frozen=True)
class AdapterSources:
    """From where adapters come that are asked for by a URL, or by a name that nobody has published."""

    fetch: Callable[[str, Path], str] | None = None
    """``fetch(source, directory)`` fills a directory and returns the URL to be recorded; it blocks."""
    find: Callable[[str], str | None] | None = None
    """``find(name)`` says from where to fetch a name; it blocks."""
    miss_seconds: float = MISS_SECONDS
    """For so long a name is remembered that ``find`` did not find."""


@dataclass(frozen=True)
class MergeOptions:
    """What merged copies need of the rest of the server."""

    decoder: Decoder  # whose weights are copied
    measure: MergeMeasure
    answering: Callable[[], Iterable[HeldMix]]  # what each sequence being answered runs with
    busy: Callable[[], bool]  # whether there are any, for which merging makes way; called from any thread
    budget: int  # bytes of all copies together
    element_bytes: int  # of one weight as it computes
    automatic: AutoMergeRules | None = None  # None: copies are made only of what is asked for


class AdapterManager:
    """The parts that adapters are served by. Built once, started and closed with the server. Event loop."""

    def __init__(
        self,
        *,
        base: BaseModel,
        store: RevisionStore,
        registry: Registry,
        pool: PagePool,
        limits: Limits,
        metrics: Metrics,
        slow: SlowWork,
        max_waiting: int = 1024,
        memory_bytes: int = 0,
        sources: AdapterSources = AdapterSources(),
        merging: MergeOptions | None = None,
        turns: Turns | None = None,
    ) -> None:
        """Nothing is read until :meth:`start`.

        Args:
            base: what adapters must fit.
            store: where revisions are kept. It is closed with this.
            registry: which names there are. It is closed with this.
            pool: the device's memory for adapters.
            limits: of one adapter.
            metrics: are told of everything.
            slow: threads for what takes long. It is closed with this.
            max_waiting: bound on the requests that wait for adapters to be brought in.
            memory_bytes: host memory for packed adapters, on the device or not.
            sources: from where adapters are fetched.
            merging: None if this server keeps no merged copies.
            turns: in which tenants get room for their adapters; None: in order of arrival.
        """
        self.base = base
        self._store = store
        self._registry = registry
        self._metrics = metrics
        self._slow = slow
        self._fetching = slow.limited(_FETCHES)

        # Where revisions are.
        self.mirror = mirror = RegistryMirror(registry)
        self.loader = loader = RevisionLoader(base, registry, store, pool, limits)
        host = HostCache(loader.read, memory_bytes=memory_bytes, metrics=metrics)
        device = DeviceCache(pool, host, metrics=metrics, max_waiting=max_waiting, turns=turns)
        references = References()
        self.refetcher = Refetcher(
            mirror, loader=loader, host=host, fetching=self._fetching, fetch=sources.fetch, metrics=metrics
        )
        self.residency = residency = Residency(references, device, host, self.refetcher.refetch)
        self._reclaimer = Reclaimer(loader, references, device, host, mirror.is_named)
        self._pins = Pins(mirror, residency)

        # What names mean.
        self.experiments = Experiments(mirror, base.name, metrics)
        self._sync = RegistrySync(mirror, self.experiments.save)
        self._orphans = UnreferencedRevisions(registry, store)
        self.janitor = Janitor(self._clean_up, self._delete_orphans)
        self._publisher = Publisher(
            mirror,
            loader,
            residency,
            registry=registry,
            store=store,
            metrics=metrics,
            fetching=self._fetching,
            fetch=sources.fetch,
        )
        self._lookup = Lookup(
            mirror, sources.find, self._publisher.publish_found, slow.limited(_LOOKUPS), sources.miss_seconds
        )
        self.views = Views(mirror, residency, metrics)
        self.deletions = Deletions(mirror, references, self._reclaimer, base.name)

        # Merged copies.
        self.variants = None if merging is None else self._make_variants(merging)
        self.auto_merge = None if merging is None else self._make_auto_merge(merging)
        automatic = None if self.auto_merge is None else self.auto_merge.copy_of
        copies = None if self.variants is None else Copies(self.variants.ready, automatic)

        # What requests and operators ask for.
        self.resolver = Resolver(
            mirror,
            lookup=self._lookup,
            refetcher=self.refetcher,
            residency=residency,
            copies=copies,
            metrics=metrics,
            base=base.name,
        )
        self.resolve = self.resolver.resolve
        self.merged = MergedCopies(self.resolver, self.variants)
        self.admin = AdapterAdmin(
            mirror,
            resolver=self.resolver,
            publisher=self._publisher,
            residency=residency,
            views=self.views,
            base=base.name,
        )
        self.aliases = AliasAdmin(mirror, self.resolver, base.name, self.experiments.forget)
        mirror.subscribe(self._names_changed)
        metrics.adapters.ask(
            registered=lambda: mirror.num_ready,
            resident=lambda: device.num_resident,
            resident_bytes=lambda: device.resident_bytes,
            host_bytes=lambda: host.used_bytes,
        )

    async def start(self) -> None:
        """Read the registry and begin to follow it. Returns when pinned adapters are on the device.

        What processes left half done that are dead now is cleaned up first.
        """
        recovered = await self._fetching.run(recover, self._registry, self._store)
        await self.mirror.read_all()
        if recovered.nameless:
            logger.warning(
                "%d revisions in %s have no name in the registry, which is new or older than they are, and "
                "has %d names. They are kept: 'manylora adapters recover' names them while no server runs",
                len(recovered.nameless),
                self._store.root,
                len(self.mirror.names),
            )
        self._sync.start()
        self.janitor.start()
        await self._pins.arrived()
        if self.auto_merge is not None:
            self.auto_merge.start()

    async def close(self) -> None:
        """Finish what has begun, and let go of registry and store."""
        if self.auto_merge is not None:
            await self.auto_merge.close()
        if self.variants is not None:
            await self.variants.close()
        await self.janitor.close()
        await self._lookup.close()
        self.residency.references.stop_waiting()
        await self.deletions.close()
        await self.refetcher.close()
        await self._publisher.close()
        await self._reclaimer.close()
        await self.residency.close()
        await self._sync.close()
        await self.mirror.close()
        self._slow.close()
        self._registry.close()
        self._store.close()

    def check(self) -> None:
        """Assert that references and memory balance."""
        self.residency.check()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is being published or freed."""
        return not (self._reclaimer.num_running or self._publisher.num_running)

    @property
    def registry(self) -> Registry:
        """The registry; what it has besides adapters is others' to use."""
        return self._registry

    def _make_variants(self, merging: MergeOptions) -> Variants:
        async def measure(variant: Variant) -> MergeError:
            return await merging.measure.measure(self.residency, variant)

        return Variants(
            merging.decoder,
            self.loader.deltas,
            measure,
            self._metrics,
            busy=merging.busy,
            budget=merging.budget,
            element_bytes=merging.element_bytes,
            building=self._slow.limited(1),
        )

    def _make_auto_merge(self, merging: MergeOptions) -> AutoMerge | None:
        if merging.automatic is None or self.variants is None:
            return None
        return AutoMerge(self.variants, merging.answering, merging.automatic, self._metrics)

    def _names_changed(self, names: Collection[str], orphans: Collection[str]) -> None:
        """Act on what the mirror has learnt: which names are different, which revisions no name has."""
        if self.variants is not None:
            self.variants.forget(orphans)
        for name in names:
            if name not in self.mirror.names:
                self._metrics.requests.forget_adapter(name)
        self._pins.update(names)
        for digest in orphans:
            self._reclaimer.reclaim(digest)
        self.residency.references.notify()

    async def _clean_up(self) -> tuple[str, ...]:
        return await self._fetching.run(clean_up, self._registry, self._store)

    async def _delete_orphans(self) -> Collection[str]:
        return await self._fetching.run(self._orphans.delete, self.residency.references.in_use())
