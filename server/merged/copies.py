"""Merged copies as an operator meets them: made of a mix by name, measured against it, looked at, freed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from manylora.adapters.errors import AdapterNotFound, MixError
from manylora.adapters.format.artifact import Artifact
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.mix import MixEntry, MixTerm, format_mix, mix_digest, normalize
from manylora.server.merged.auto_merge import AutoMerge, AutoMergeRules
from manylora.server.merged.variants import MergeError, Variant, Variants
from manylora.server.metrics.families import OTHER
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.names.admin import Lifecycle
from manylora.server.names.aliases import expand_sole
from manylora.server.names.resolve import describe, digest_of
from manylora.server.residency.lease import Lease, Resolution

Compare = Callable[[Lease, Lease], Awaitable[MergeError]]  # unmerged, merged; takes both leases over


class Copies(Lifecycle):
    """What an operator does to merged copies. Lives on the event loop."""

    variants: Variants | None = None  # None: this server keeps no merged copies
    auto_merge: AutoMerge | None = None  # None: copies are made only of what is asked for

    def keep_merged_copies(
        self, decoder: Decoder, compare: Compare, busy: Callable[[], bool], *, budget: int, element_bytes: int
    ) -> None:
        """Let merged copies be made from now on, of at most ``budget`` bytes together.

        ``busy`` tells whether answers are in progress, for which merging makes way.
        """

        async def measure(variant: Variant) -> MergeError:
            return await self._measure(variant, compare)

        self.variants = Variants(
            decoder,
            self._deltas,
            measure,
            self._metrics,
            busy=busy,
            budget=budget,
            element_bytes=element_bytes,
        )

    def merge_automatically(
        self, rules: AutoMergeRules, answering: Callable[[], Iterable[Resolution]]
    ) -> None:
        """Merge what most answers are for from :meth:`start` on; ``answering`` says what each runs with."""
        self.auto_merge = AutoMerge(self._copies(), answering, rules, self._metrics)

    async def start(self) -> None:
        await super().start()
        if self.auto_merge is not None:
            self.auto_merge.start()

    async def merge(self, terms: Sequence[MixTerm]) -> Variant:
        """Begin to build the merged copy of a mix of current or named revisions, unless there is one.

        Raises:
            AdapterNotFound: a member does not exist or does not serve.
            MixError: the mix is the base model, or names a merged copy or an alias that is a split.
            ArtifactError: a member has parts that can't be merged.
            AdapterTooLarge: the copy does not fit beside those in use.
            QueueFull: too many unknown names are being looked up.
        """
        await self.look_up(terms)
        entries, model = self._entries(terms)
        return await self._copies().build(entries, model)

    async def merged(self, variant: Variant) -> None:
        """Wait until a copy that was begun is ready or has failed."""
        await self._copies().finished(variant)

    def reader(self, terms: Sequence[MixTerm]) -> Callable[[], list[tuple[MixTerm, Artifact, float]]]:
        """What reads the members of a mix from disk, in a thread; their revisions are found now.

        Raises:
            As :meth:`digests`.
        """
        found = self.digests(terms)

        def read() -> list[tuple[MixTerm, Artifact, float]]:
            return [(term, self._library.artifact(digest), term.weight) for term, digest in found]

        return read

    def digests(self, terms: Sequence[MixTerm]) -> list[tuple[MixTerm, str]]:
        """The terms of a mix, aliases replaced, with the revisions they mean now.

        Raises:
            AdapterNotFound: a member does not exist or does not serve.
            MixError: an alias splits its requests.
        """
        found = expand_sole(terms, self._catalogue.aliases, self.base.name)
        return [(term, digest_of(term, self._catalogue.get_ready(term.name))) for term in found]

    def hold(self, terms: Sequence[MixTerm]) -> Resolution:
        """Reference the revisions of a mix, for their files, wherever they are; until they are dropped.

        Raises:
            AdapterNotFound: a member does not exist or does not serve.
            MixError: the mix is the base model, or names a merged copy or an alias that is a split.
        """
        return self._hold(*self._entries(terms))

    def _hold(self, entries: Sequence[MixEntry], model: str) -> Resolution:
        members = tuple((self._holdings.revision(e.digest), e.weight) for e in entries)
        self._holdings.refer(revision for revision, _ in members)
        return Resolution(members, model, OTHER, mix_digest(entries))

    def merged_copy(self, terms: Sequence[MixTerm]) -> Variant:
        """The merged copy of a mix, in whatever state.

        Raises:
            AdapterNotFound: a member or the copy does not exist.
        """
        entries, model = self._entries(terms)
        variant = self._copies().find(entries)
        if variant is None:
            raise AdapterNotFound(f"there is no merged copy of {model!r}")
        return variant

    async def free_merged(self, terms: Sequence[MixTerm], deadline: float) -> tuple[int, int]:
        """Drop the merged copy of a mix; the bytes freed, and the requests that still hold it.

        New requests are refused at once; after ``deadline`` seconds this answers though some still run.

        Raises:
            AdapterNotFound: a member or the copy does not exist.
        """
        variant = self.merged_copy(terms)
        freed = await self._copies().free(variant, deadline)
        return freed, variant.references

    async def close(self) -> None:
        if self.auto_merge is not None:
            await self.auto_merge.close()
        if self.variants is not None:
            await self.variants.close()
        await super().close()

    def _note(self, names: Collection[str], orphans: Collection[str]) -> None:
        if self.variants is not None:
            self.variants.forget(orphans)
        super()._note(names, orphans)

    def _copies(self) -> Variants:
        if self.variants is None:
            raise MixError("this server keeps no merged copies")
        return self.variants

    def _entries(self, terms: Sequence[MixTerm]) -> tuple[tuple[MixEntry, ...], str]:
        """The revisions of a mix, and its name with these."""
        found = self.digests(terms)
        if any(term.merged for term, _ in found):
            raise MixError(f"{format_mix(term for term, _ in found)!r} names a merged copy already")
        entries = normalize(MixEntry(digest, term.weight) for term, digest in found)
        if not entries:
            raise MixError("there is nothing to merge: that is the base model")
        return entries, describe([term for term, _ in found], dict(found), self.base.name, merged=False)

    def _deltas(self, digest: str) -> Mapping[str, ModuleDelta]:
        """In a worker thread."""
        return self._library.deltas(digest)

    async def _measure(self, variant: Variant, compare: Compare) -> MergeError:
        plain = self._hold(variant.entries, variant.model)
        unmerged = await self._holdings.lease(plain)
        variant.refer()
        merged = Lease(self._holdings, Resolution((), variant.model, OTHER, plain.digest, variant))
        return await compare(unmerged, merged)
