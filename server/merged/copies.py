"""Merged copies by the names of mixes: made and freed by operators."""

from __future__ import annotations

from collections.abc import Sequence

from manylora.adapters.errors import AdapterNotFound, MixError
from manylora.adapters.mix import MixTerm
from manylora.server.merged.variants import Variant, Variants
from manylora.server.names.resolve import Resolver


class MergedCopies:
    """What an operator does to merged copies. Lives on the event loop."""

    def __init__(self, resolver: Resolver, variants: Variants | None) -> None:
        """Without ``variants`` this server keeps no merged copies, and every call is a MixError."""
        self._resolver = resolver
        self._variants = variants

    async def build(self, terms: Sequence[MixTerm]) -> Variant:
        """Begin to build the merged copy of a mix of current or named revisions, unless there is one.

        Raises:
            AdapterNotFound: a member does not exist or does not serve.
            MixError: the mix is the base model, or names a merged copy or an alias that is a split.
            ArtifactError: a member has parts that can't be merged.
            AdapterTooLarge: the copy does not fit beside those in use.
            QueueFull: too many unknown names are being looked up.
        """
        await self._resolver.look_up(terms)
        entries, model = self._resolver.plain_mix(terms)
        return await self._kept().build(entries, model)

    async def finished(self, variant: Variant) -> None:
        """Wait until a copy that was begun is ready or has failed."""
        await self._kept().finished(variant)

    def find(self, terms: Sequence[MixTerm]) -> Variant:
        """The merged copy of a mix, in whatever state.

        Raises:
            AdapterNotFound: a member or the copy does not exist.
        """
        entries, model = self._resolver.plain_mix(terms)
        variant = self._kept().find(entries)
        if variant is None:
            raise AdapterNotFound(f"there is no merged copy of {model!r}")
        return variant

    async def free(self, terms: Sequence[MixTerm], deadline: float) -> tuple[int, int]:
        """Drop the merged copy of a mix; the bytes freed, and the requests that still hold it.

        New requests are refused at once; after ``deadline`` seconds this answers though some still run.

        Raises:
            AdapterNotFound: a member or the copy does not exist.
        """
        variant = self.find(terms)
        freed = await self._kept().free(variant, deadline)
        return freed, variant.references

    def list(self) -> list[Variant]:
        """Every copy, in order of creation."""
        return self._kept().list()

    def _kept(self) -> Variants:
        if self._variants is None:
            raise MixError("this server keeps no merged copies")
        return self._variants
