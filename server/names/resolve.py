"""From a model string to what runs: aliases, revisions, and how the answer is called."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from manylora.adapters.errors import AdapterNotFound, AdapterTooLarge, MixError
from manylora.adapters.mix import MixEntry, MixTerm, format_mix, mix_digest, normalize
from manylora.adapters.registry.records import NameRecord, State
from manylora.server.metrics.labels import OTHER
from manylora.server.metrics.metrics import Metrics
from manylora.server.names.aliases import expand, expand_sole, target_terms
from manylora.server.names.describing import describe, label_of
from manylora.server.names.lookup import Lookup
from manylora.server.names.refetch import Refetcher
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.names.view import View, meant
from manylora.server.residency.held_mix import HeldMix, MergedCopy, RevisionMix
from manylora.server.residency.residency import Residency
from manylora.server.residency.revision_loader import SHOWN_DIGITS


@dataclass(frozen=True, slots=True)
class Copies:
    """Where a mix's merged copy comes from. Neither function references what it returns."""

    ready: Callable[[Sequence[MixEntry], str], MergedCopy]
    """The copy of a mix that the client calls so; AdapterNotFound if there is none to run with."""
    substitute: Callable[[Sequence[MixEntry]], MergedCopy | None] | None
    """The copy that answers in place of the mix though nobody asked for it, if there is one."""


class Resolver:
    """Finds the revisions that a model string means, and holds them. Lives on the event loop."""

    def __init__(
        self,
        mirror: RegistryMirror,
        *,
        lookup: Lookup,
        refetcher: Refetcher,
        residency: Residency,
        copies: Copies | None,
        metrics: Metrics,
        base: str,
    ) -> None:
        """``base`` is the base model's name. Without ``copies`` this server keeps no merged copies."""
        self._mirror = mirror
        self._lookup = lookup
        self._refetcher = refetcher
        self._residency = residency
        self._copies = copies
        self._metrics = metrics
        self._base = base

    @asynccontextmanager
    async def resolve(
        self,
        terms: Sequence[MixTerm],
        *,
        user: str | None = None,
        as_asked: bool = False,
        view: View | None = None,
    ) -> AsyncIterator[HeldMix]:
        """Hold the revisions of a mix until the end of the block. Waits for nothing if the names are known.

        Args:
            terms: () is the base model. They may name aliases, of which ``user`` gets always the same arm.
            as_asked: a copy that was merged automatically is no substitute for the mix.
            view: what there is for who asks, by the names that the terms have; None: everything.

        Raises:
            AdapterNotFound: a name, or its revision, does not exist or does not serve, or is not visible.
            MixError: merged copies are asked for of some members only, or the aliases come to no valid mix.
            AdapterTooLarge: the members together exceed the memory given to adapters.
            ArtifactError: a source has an adapter of an unknown name, but it can't be served.
            QueueFull: too many unknown names are being looked up.
        """
        found = await self.look_up(terms, view)
        if view is not None:  # again: an alias may stand for others since
            self._check_visible(found, terms, view)
        with self._hold_for_request(found, user, as_asked, view) as held:
            yield held

    def _hold_for_request(
        self, terms: Sequence[MixTerm], user: str | None, as_asked: bool, view: View | None
    ) -> HeldMix:
        arm = None
        if not self._mirror.aliases.keys().isdisjoint(term.name for term in terms):
            terms, arm = expand(terms, self._mirror.aliases, self._base, user)
        merged = asks_merged(terms)
        digests = {term: digest_of(term, self._admissible(term.name)) for term in terms}
        entries = normalize(MixEntry(digests[term], term.weight) for term in terms)
        copy = self._copy_for(entries, terms, merged, as_asked)
        served = describe(terms, digests, self._base, merged=copy is not None, view=view)
        names = frozenset(term.name for term in terms)
        revisions = self._revisions(entries, served, label_of(terms), names)
        if copy is None:
            self._check_fits(revisions)
        for name in names:
            self._mirror.touch(name)
            self._metrics.requests.add_adapter(name)
        held = HeldMix(self._residency, revisions, copy=copy, arm=arm)
        if copy is None and any(revision.pages is None for revision in held.members):
            self._residency.read_early(held.members)
        return held

    def hold(self, terms: Sequence[MixTerm]) -> HeldMix:
        """Hold the revisions of a mix for their files, wherever they are, until it is released.

        Raises:
            As :meth:`plain_mix`.
        """
        entries, model = self.plain_mix(terms)
        names = frozenset(term.name for term, _ in self.digests(terms))
        return HeldMix(self._residency, self._revisions(entries, model, OTHER, names))

    def plain_mix(self, terms: Sequence[MixTerm]) -> tuple[tuple[MixEntry, ...], str]:
        """The revisions of a mix with their weights, and the mix as a model string that names them.

        Raises:
            AdapterNotFound: a member does not exist or does not serve.
            MixError: the mix is the base model, or names a merged copy or an alias that is a split.
        """
        found = self.digests(terms)
        if any(term.merged for term, _ in found):
            raise MixError(f"{format_mix(term for term, _ in found)!r} names a merged copy already")
        entries = normalize(MixEntry(digest, term.weight) for term, digest in found)
        if not entries:
            raise MixError("there is nothing to merge: that is the base model")
        return entries, describe([term for term, _ in found], dict(found), self._base, merged=False)

    def digests(self, terms: Sequence[MixTerm]) -> list[tuple[MixTerm, str]]:
        """The terms of a mix, aliases replaced, with the revisions they mean now.

        Raises:
            AdapterNotFound: a member does not exist or does not serve.
            MixError: an alias splits its requests.
        """
        found = expand_sole(terms, self._mirror.aliases, self._base)
        return [(term, digest_of(term, self._mirror.get_ready(term.name))) for term in found]

    def visible_terms(self, terms: Sequence[MixTerm], view: View) -> tuple[MixTerm, ...]:
        """The terms by the registry's names, refusing what is not there for who asks.

        What they can't see is missing among their own names, so that neither the answer nor its time tells
        whether somebody else has something of that name. An alias is visible if all that it stands for is.

        Raises:
            AdapterNotFound: a name is not visible; the base model, for () terms.
        """
        found = meant(terms, view)
        self._check_visible(found, terms, view)
        return found

    def _check_visible(self, terms: Sequence[MixTerm], asked: Sequence[MixTerm], view: View) -> None:
        if not terms and not view.visible(None):
            raise AdapterNotFound(f"no adapter is registered under the name {self._base!r}")
        for term, as_asked in zip(terms, asked, strict=True):
            if term.name != self._base and not self.is_visible(term.name, view):
                raise _missing(as_asked.name)

    def is_visible(self, name: str, view: View) -> bool:
        """Whether the registry's ``name``, if there is something of it, is there for who asks."""
        alias = self._mirror.aliases.get(name)
        if alias is None or not view.visible(name):
            return view.visible(name)
        for target, _ in alias.arms:
            found = target_terms(target, self._base)
            if not all(view.visible(term.name) for term in found) or not (found or view.visible(None)):
                return False
        return True

    async def look_up(self, terms: Sequence[MixTerm], view: View | None = None) -> tuple[MixTerm, ...]:
        """Ask the registry and the sources for those names of a mix that this server doesn't know.

        Returns the terms by the registry's names.

        Raises:
            AdapterNotFound, ArtifactError, AdapterTooLarge, SourceMissing, QueueFull: as Lookup.find.
            AdapterNotFound: a name is not there for who asks.
            MixError: the base model is among them.
        """
        found = tuple(terms) if view is None else self.visible_terms(terms, view)
        for asked, term in zip(terms, found, strict=True):
            if term.name == self._base:
                raise MixError(
                    f"{term.name!r} is the base model, which is part of every mix: name adapters only"
                )
            if not self._is_ready(term.name):
                await self._find(term.name, asked.name, view)
        return found

    async def _find(self, name: str, asked: str, view: View | None) -> None:
        try:
            await self._lookup.find(name, sources=view is None or view.from_sources(name))
        except AdapterNotFound:
            if view is None or name in self._mirror.names:
                raise
            raise _missing(asked) from None

    def knows(self, terms: Sequence[MixTerm], view: View | None = None) -> bool:
        """Whether :meth:`resolve` would answer at once."""
        return all(self._is_ready(term.name) for term in meant(terms, view))

    def _is_ready(self, name: str) -> bool:
        """Whether it serves or is an alias, as far as this server knows."""
        record = self._mirror.names.get(name)
        return name in self._mirror.aliases or (record is not None and record.state is State.READY)

    def _admissible(self, name: str) -> NameRecord:
        """The record of a name that new requests may use; AdapterNotFound for any other."""
        record = self._mirror.names.get(name)
        if record is not None and record.state is State.FAILED and self._refetcher.can_refetch(record):
            return record
        return self._mirror.get_ready(name)

    def _revisions(
        self, entries: Sequence[MixEntry], served: str, label: str, names: frozenset[str]
    ) -> RevisionMix:
        members = tuple((self._residency.references.revision(e.digest), e.weight) for e in entries)
        return RevisionMix(members, served, label, mix_digest(entries), names)

    def _check_fits(self, mix: RevisionMix) -> None:
        needed = sum(revision.nbytes for revision, _ in mix.entries)
        capacity = self._residency.device.capacity_bytes
        if needed > capacity:
            raise AdapterTooLarge(
                f"this mix needs {needed} bytes of adapter memory, the server has {capacity}"
            )

    def _copy_for(
        self, entries: Sequence[MixEntry], terms: Sequence[MixTerm], merged: bool, as_asked: bool
    ) -> MergedCopy | None:
        """The merged copy that is to answer, if one is."""
        if self._copies is None:
            if merged:
                raise MixError("this server keeps no merged copies")
            return None
        if merged:
            return self._copies.ready(entries, format_mix(replace(term, merged=False) for term in terms))
        if as_asked or not entries or self._copies.substitute is None:
            return None
        return self._copies.substitute(entries)


def digest_of(term: MixTerm, record: NameRecord) -> str:
    """The revision that ``term`` means, given the record of its name, which serves.

    Raises:
        AdapterNotFound: the name has no such revision.
    """
    assert record.digest is not None
    if term.revision is None or record.digest.startswith(term.revision):
        return record.digest
    return find_revision(record, term.revision)


def find_revision(record: NameRecord, prefix: str) -> str:
    """The one digest in a name's history that begins with ``prefix``.

    Raises:
        AdapterNotFound: there is none, or more than one.
    """
    found = [digest for digest in record.history if digest.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    have = ", ".join(digest[:SHOWN_DIGITS] for digest in record.history)
    problem = "several revisions that begin with" if found else "no revision"
    raise AdapterNotFound(f"adapter {record.name!r} has {problem} {prefix}; its revisions are {have}")


def asks_merged(terms: Sequence[MixTerm]) -> bool:
    """Whether the merged copy of a mix is asked for.

    Raises:
        MixError: of some members, but not of all: a copy is made of a whole mix.
    """
    plain = [term.name for term in terms if not term.merged]
    if plain and len(plain) < len(terms):
        raise MixError(
            f"a merged copy is of a whole mix: write '@merged' behind {plain[0]!r} as well, or nowhere"
        )
    return bool(terms) and not plain


def _missing(name: str) -> AdapterNotFound:
    return AdapterNotFound(f"no adapter is registered under the name {name[:140]!r}")
