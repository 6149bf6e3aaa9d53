"""The adapters a request can name, and what it holds of them.

A request resolves its model string exactly once; from then on it holds the revisions it found, and a
name that is re-published or removed meanwhile does not concern it. The parts: the registry's copy in
memory (``catalogue``), how revisions get in (``publishing``), who holds them and where they are
(``holdings``, ``placement``, ``tiers``), what is done about names that nobody knows (``lookup``).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from manylora.adapters.errors import AdapterNotFound, AdapterTooLarge
from manylora.adapters.mix import MixEntry, MixTerm, format_mix, mix_digest, normalize
from manylora.adapters.registry.records import NameRecord, RevisionRecord
from manylora.server.merged.copies import Copies
from manylora.server.merged.variants import Variant
from manylora.server.metrics.families import BASE
from manylora.server.names.aliases import expand
from manylora.server.names.resolve import asks_merged, describe, digest_of, label_of
from manylora.server.names.status import EVERY_NAME, AdapterStatus, Filter, Registered
from manylora.server.residency.lease import Lease, Resolution


class AdapterManager(Copies):
    """Names, the revisions they point to, and the requests that hold those. Lives on the event loop."""

    def get(self, name: str) -> Registered:
        """A name that serves; AdapterNotFound if there is no such name, or it does not serve."""
        return self._overview.get(name)

    def status(self, name: str) -> AdapterStatus:
        """Everything about a name, in whatever state; AdapterNotFound if there is no such name."""
        return self._overview.status(name)

    async def revisions(self, name: str) -> list[RevisionRecord]:
        """The facts of every revision that ``name`` can be rolled back to, the latest first.

        Raises:
            AdapterNotFound: no such name.
        """
        return await self._catalogue.all_facts(self._catalogue.get(name).history)

    def page(self, wanted: Filter = EVERY_NAME, *, after: str = "", limit: int = 100) -> list[AdapterStatus]:
        """The first ``limit`` names beyond ``after``, sorted, that pass the filter."""
        return self._overview.page(wanted, after=after, limit=limit)

    def list(self) -> list[Registered]:
        """The names that serve."""
        return self._overview.serving()

    async def resolve(
        self, terms: Sequence[MixTerm], *, user: str | None = None, as_asked: bool = False
    ) -> Resolution:
        """Find the revisions of a mix and reference them. Waits for nothing if the names are known.

        Args:
            terms: may name aliases, of which ``user`` gets always the same arm.
            as_asked: a copy that was merged automatically is no substitute for the mix.

        Raises:
            AdapterNotFound: a name, or its revision, does not exist or does not serve.
            MixError: merged copies are asked for of some members only, or the aliases come to no valid mix.
            AdapterTooLarge: the members together exceed the memory given to adapters.
            ArtifactError: a source has an adapter of an unknown name, but it can't be served.
            QueueFull: too many unknown names are being looked up.
        """
        await self.look_up(terms)
        terms, arm = expand(terms, self._catalogue.aliases, self.base.name, user)
        merged = asks_merged(terms)
        digests = {term: digest_of(term, self._admitted(term.name)) for term in terms}
        entries = normalize(MixEntry(digests[term], term.weight) for term in terms)
        members = tuple((self._holdings.revision(e.digest), e.weight) for e in entries)
        variant = self._copy_for(entries, terms, merged, as_asked)
        needed = sum(revision.nbytes for revision, _ in members)
        if variant is None and needed > self._placement.capacity_bytes:
            raise AdapterTooLarge(
                f"this mix needs {needed} bytes of adapter memory, the server has "
                f"{self._placement.capacity_bytes}"
            )
        for name in {term.name for term in terms}:
            self._follower.touch(name)
            self._metrics.adapter_used(name)
        self._holdings.refer(revision for revision, _ in members)
        if variant is None:
            self._holdings.warm_up(revision for revision, _ in members)
        served = describe(terms, digests, self.base.name, merged=variant is not None)
        return Resolution(members, served, label_of(terms), mix_digest(entries), variant, arm)

    def _copy_for(
        self, entries: Sequence[MixEntry], terms: Sequence[MixTerm], merged: bool, as_asked: bool
    ) -> Variant | None:
        """The merged copy that is to answer, referenced, if one is."""
        if merged:
            return self._copies().take(entries, format_mix(replace(term, merged=False) for term in terms))
        if self.auto_merge is None or as_asked:
            return None
        variant = self.auto_merge.copy_of(entries)
        if variant is not None:
            variant.refer()
        return variant

    def knows(self, terms: Sequence[MixTerm]) -> bool:
        """Whether :meth:`resolve` would answer at once."""
        return all(self._is_ready(term.name) for term in terms)

    def _admitted(self, name: str) -> NameRecord:
        if name in self._refused:
            raise AdapterNotFound(f"the adapter {name!r} is being deleted")
        record = self._catalogue.names.get(name)
        if record is not None and self._restorer.can_restore(record):
            return record
        return self._catalogue.get_ready(name)

    async def ensure_on_disk(self, resolution: Resolution, also: Container[str] = ()) -> None:
        """Fetch again those members whose files are needed, have vanished, and come from a remote source.

        Needed are those that are neither on the device nor in host memory, and the digests in ``also``.

        Raises:
            AdapterNotFound: a member was deleted meanwhile, and its files with it.
            SourceMissing: its source can't be asked, or has it no more.
        """
        for revision in resolution.members:
            digest = revision.digest
            here = revision.pages is not None or self._tiers.bytes_of(digest) > 0
            if (digest in also or not here) and not self._library.has(digest):
                await self._restorer.restore(digest)

    async def lease(self, resolution: Resolution) -> Lease:
        """Wait until every member is on the device; failure or cancellation drops the references.

        Raises:
            AdapterNotFound: a member was deleted meanwhile, and its files with it.
            AdapterTooLarge: the members can't be on the device together, beside what is pinned there.
            SourceMissing, ArtifactError: its files are gone or damaged.
            QueueFull: too many requests wait for adapters.
        """
        lease = await self._holdings.lease(resolution)
        self._observe()
        return lease

    def again(self, resolution: Resolution) -> Resolution:
        """The same revisions referenced once more, for another lease, whatever their names mean by now."""
        return self._holdings.again(resolution)

    def drop(self, resolution: Resolution) -> None:
        """Give a resolution's references back, once; those of a lease end with it."""
        self._holdings.drop(resolution)

    def base_lease(self) -> Lease:
        """The lease of the empty mix."""
        return Lease(self._holdings, Resolution((), self.base.name, BASE, b""))

    @property
    def num_references(self) -> int:
        """References that resolved requests hold."""
        return self._holdings.num_references
