"""The life of names: publishing, rolling back, pinning, moving between tiers, deleting; and aliases."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from manylora.adapters.errors import AdapterExists, AdapterInUse, AdapterNotFound, MixError
from manylora.adapters.mix import MixTerm, check_name, is_name
from manylora.adapters.registry.records import AliasRecord, NameRecord, State
from manylora.server.names.aliases import naming, shown, stored, target_terms
from manylora.server.names.parts import Parts
from manylora.server.names.publishing import Publication, Wanted, copy
from manylora.server.names.resolve import digest_of, find_revision
from manylora.server.names.status import AdapterStatus, Deleted, Registered
from manylora.server.residency.revision_loader import Fetch

DRAIN_SECONDS = 30.0  # how long a deletion waits for running requests before it answers


class Lifecycle(Parts):
    """What an operator does to adapters. Lives on the event loop."""

    # Finding.

    async def look_up(self, terms: Sequence[MixTerm]) -> None:
        """Ask the registry and the sources for those names of a mix that this server doesn't know.

        Raises:
            AdapterNotFound, ArtifactError, AdapterTooLarge, SourceMissing, QueueFull: as Lookup.find.
            MixError: the base model is among them.
        """
        for term in terms:
            if term.name == self.base.name:
                raise MixError(
                    f"{term.name!r} is the base model, which is part of every mix: name adapters only"
                )
            if not self._is_ready(term.name):
                await self._lookup.find(term.name)

    async def catch_up(self) -> None:
        """See what other servers have changed by now, before something is decided by it."""
        await self._catalogue.follow()

    def has(self, name: str) -> bool:
        """Whether there is an adapter of that name, as far as this server knows."""
        return name in self._catalogue.names

    def _is_ready(self, name: str) -> bool:
        """Whether it serves or is an alias, as far as this server knows."""
        record = self._catalogue.names.get(name)
        return name in self._catalogue.aliases or (record is not None and record.state is State.READY)

    # Publishing.

    async def begin_publish(
        self,
        name: str,
        fetch: Fetch,
        *,
        source: str,
        replace: bool = True,
        tags: Sequence[str] | None = None,
    ) -> Publication:
        """Announce a revision for ``name`` and begin to bring it in; the result tells how it goes.

        ``fetch`` fills a directory with the artifact; it runs in a thread and may block. A name that
        serves goes on serving what it does until the new revision is there, and if that fails. Publishing
        what a name already is changes nothing. ``tags`` replace those it has; None keeps them.

        Raises:
            AdapterNameError: the name or a tag is malformed.
            AdapterExists: the name is the base model's or an alias's, or serves and is not to be replaced.
        """
        self.check_free(name, replace)
        kept = None if tags is None else tuple(sorted(tags))
        return await self._publisher.announce(Wanted(name, source, fetch, replace, kept))

    async def load(self, name: str, path: Path, *, replace: bool = False) -> Registered:
        """Publish the adapter in the directory ``path``, and put it on the device if there is room.

        Raises:
            AdapterNameError, AdapterExists, SourceMissing, ArtifactError: nothing is registered then.
            AdapterTooLarge: it alone exceeds the memory given to adapters.
        """
        self.check_free(name, replace)
        wanted = Wanted(name, str(path), lambda into: copy(path, into), replace)
        publication = self._publisher.publish_directory(wanted, path)
        return await publication.done()

    def check_free(self, name: str, replace: bool) -> None:
        """Raise unless ``name`` may be published.

        Raises:
            AdapterNameError: it is malformed.
            AdapterExists: it is the base model's or an alias's, or serves and is not to be replaced.
        """
        check_name(name)
        if name == self.base.name:
            raise AdapterExists(f"{name!r} is the name of the base model")
        if name in self._catalogue.aliases:
            raise AdapterExists(f"the name {name!r} is that of an alias")
        record = self._catalogue.names.get(name)
        if record is not None and record.state is State.READY and not replace:
            raise AdapterExists(f"the name {name!r} is taken; unload it first or ask to replace it")

    async def rollback(self, name: str, revision: str | None = None) -> AdapterStatus:
        """Make ``name`` mean an earlier revision again: the one before, or that which ``revision`` begins.

        The revision that was current stays in the history, as the one before.

        Raises:
            AdapterNotFound: no such name, or no such revision in its history.
        """
        await self.catch_up()
        record = self._catalogue.get(name)
        if revision is not None:
            digest = find_revision(record, revision)
        elif len(record.history) > 1:
            digest = record.history[1]
        else:
            raise AdapterNotFound(f"adapter {name!r} has no earlier revision")
        await self._catalogue.change(name, lambda registry: registry.names.rollback(name, digest))
        return self._overview.status(name)

    # Moving between tiers.

    async def pin(self, name: str) -> AdapterStatus:
        """Keep ``name`` on the device from now on, whatever its current revision is.

        Raises:
            AdapterNotFound: no such name, or it does not serve.
            AdapterTooLarge: it does not fit there beside what is pinned already.
            SourceMissing, ArtifactError: its files are gone or damaged.
        """
        await self._holdings.make_resident(await self._current(name))
        await self._catalogue.change(name, lambda registry: registry.names.set_pinned(name, True))
        return self._overview.status(name)

    async def unpin(self, name: str) -> AdapterStatus:
        """Let ``name`` be evicted again; AdapterNotFound if there is no such name."""
        await self._catalogue.change(name, lambda registry: registry.names.set_pinned(name, False))
        return self._overview.status(name)

    async def prefetch(self, name: str) -> AdapterStatus:
        """Bring ``name`` in, to the device if evicting idle adapters makes room, else to host memory.

        Raises:
            AdapterNotFound: no such name, or it does not serve.
            AdapterTooLarge: pinned adapters leave it no room.
            AdapterInUse: running requests do, and host memory doesn't keep it.
            SourceMissing, ArtifactError: its files are gone or damaged.
        """
        await self._holdings.prefetch(await self._current(name))
        self._observe()
        return self._overview.status(name)

    async def evict(self, name: str) -> AdapterStatus:
        """Take ``name``, with all its revisions, off the device and out of host memory; it stays on disk.

        Raises:
            AdapterNotFound: no such name.
            AdapterInUse: it is pinned, or requests run with it.
        """
        await self._holdings.evict(self._catalogue.get(name).history)
        self._observe()
        return self._overview.status(name)

    async def _current(self, name: str) -> str:
        """The revision that ``name`` serves; it is looked up if need be, as for a request."""
        if is_name(name):
            await self.look_up([MixTerm(name)])
        digest = self._catalogue.get_ready(name).digest
        assert digest is not None
        return digest

    # Deleting.

    async def delete(self, name: str, deadline: float = DRAIN_SECONDS) -> Deleted:
        """Forget ``name``: new requests are refused at once, running ones finish, then all of it is freed.

        Answers after ``deadline`` seconds at the latest. What still runs then keeps its memory until it
        ends. Revisions that another name has stay.

        Raises:
            AdapterNotFound: no such name, or it is being deleted already.
            AdapterInUse: an alias points to it; change or delete the alias first.
        """
        if not self.has(name) or self._aliases_of(name):  # as far as this server knows
            await self.catch_up()
        record = self._catalogue.get(name)
        if name in self._deleting:
            raise AdapterNotFound(f"the adapter {name!r} is being deleted already")
        aliases = self._aliases_of(name)
        if aliases:
            raise AdapterInUse(f"the alias {aliases[0]!r} points to {name!r}: change or delete it first")
        work = asyncio.create_task(self._delete(record, monotonic() + deadline))
        self._deleting[name] = work
        work.add_done_callback(lambda _: self._deleting.pop(name))
        return await asyncio.shield(work)  # seen through, whoever goes away

    def _aliases_of(self, name: str) -> list[str]:
        return naming(name, self._catalogue.aliases, self.base.name)

    async def unload(self, name: str) -> int:
        """Delete ``name`` within 30 seconds; returns the device bytes freed."""
        return (await self.delete(name)).bytes_freed

    async def _delete(self, record: NameRecord, deadline: float) -> Deleted:
        name, holdings = record.name, self._holdings
        self._refused.add(name)
        try:
            await self._catalogue.change(name, lambda registry: registry.names.drain(name))
        finally:
            self._refused.discard(name)
        own = [d for d in record.history if self._catalogue.holders(d) <= {name}]
        await holdings.wait_until(
            lambda: not self._is_draining(name) or not holdings.references(own), deadline
        )
        try:
            await self._catalogue.change(name, lambda r: r.names.remove(name, state=State.DRAINING))
        except AdapterNotFound:  # published again meanwhile, or removed by another server
            await self._catalogue.refresh(name)
        running = holdings.references(own)
        retiring = [holdings.retire(d) for d in own if not self._catalogue.is_held(d)]
        if running:
            return Deleted(0, drained=False, running=running)
        return Deleted(sum(await asyncio.gather(*map(asyncio.shield, retiring))), drained=True, running=0)

    def _is_draining(self, name: str) -> bool:
        record = self._catalogue.names.get(name)
        return record is not None and record.state is State.DRAINING

    # Aliases.

    async def put_alias(
        self, name: str, arms: Sequence[tuple[str, float]], *, reset: bool = False
    ) -> AliasRecord:
        """Let ``name`` mean a model string, or one of several with probabilities like their shares.

        A target is a name, a name and revision, a mix of these, or the base model. Targets must exist; they
        are looked up if need be.
        What was counted of targets that stay is kept, unless ``reset``.

        Raises:
            AdapterNameError, MixError: malformed, or a target is an alias itself.
            AdapterExists: ``name`` is an adapter's, or the base model's.
            AdapterNotFound: a target does not exist.
        """
        check_name(name)
        if name == self.base.name:
            raise AdapterExists(f"{name!r} is the name of the base model")
        await self.catch_up()
        terms = [term for target, _ in arms for term in target_terms(target, self.base.name)]
        await self.look_up(terms)
        for term in terms:
            if term.name not in self._catalogue.aliases:  # which the registry refuses
                digest_of(term, self._catalogue.get_ready(term.name))
        kept = stored(arms, self.base.name)
        record = await self._catalogue.change(
            name, lambda registry: registry.aliases.put(name, kept, reset=reset)
        )
        self.experiments.forget(name, everything=reset)
        return shown(record, self.base.name)

    async def delete_alias(self, name: str) -> AliasRecord:
        """Forget an alias; AdapterNotFound if there is none of that name."""
        record = await self._catalogue.change(name, lambda registry: registry.aliases.remove(name))
        self.experiments.forget(name, everything=True)
        return record

    def alias(self, name: str) -> AliasRecord:
        """One alias; AdapterNotFound if there is none of that name."""
        try:
            return shown(self._catalogue.aliases[name], self.base.name)
        except KeyError:
            raise AdapterNotFound(f"there is no alias {name[:140]!r}") from None

    def aliases(self) -> list[AliasRecord]:
        """Every alias, by name."""
        aliases = self._catalogue.aliases
        return [shown(aliases[name], self.base.name) for name in sorted(aliases)]
