"""What an operator does to adapters: publish, roll back, pin, and move between tiers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manylora.adapters.errors import AdapterExists, AdapterNotFound
from manylora.adapters.mix import MixTerm, check_name, is_name
from manylora.adapters.registry.records import State
from manylora.server.names.admin.publishing import Publication, Publisher, Wanted, copy
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.names.resolve import Resolver, find_revision
from manylora.server.names.status import AdapterStatus, Registered
from manylora.server.names.views import Views
from manylora.server.residency.residency import Residency
from manylora.server.residency.revision_loader import Fetch


class AdapterAdmin:
    """Changes what names mean and where their bytes are. Lives on the event loop."""

    def __init__(
        self,
        mirror: RegistryMirror,
        *,
        resolver: Resolver,
        publisher: Publisher,
        residency: Residency,
        views: Views,
        base: str,
    ) -> None:
        """``base`` is the base model's name."""
        self._mirror = mirror
        self._resolver = resolver
        self._publisher = publisher
        self._residency = residency
        self._views = views
        self._base = base

    async def catch_up(self) -> None:
        """See what other servers have changed by now, before something is decided by it."""
        await self._mirror.follow()

    def has(self, name: str) -> bool:
        """Whether there is an adapter of that name, as far as this server knows."""
        return name in self._mirror.names

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
        what a name already is changes nothing. ``tags`` replace those it has; None keeps them. Without
        ``replace`` the name is one that :meth:`check_free` has passed: if it has got the same content
        since then, that is what was asked for, and other content fails the publication.

        Raises:
            AdapterNameError: the name or a tag is malformed.
            AdapterExists: the name is the base model's or an alias's.
        """
        self.check_free(name, replace=True)
        kept = None if tags is None else tuple(sorted(tags))
        return await self._publisher.announce(Wanted(name, source, fetch, replace, kept))

    async def load(self, name: str, path: Path, *, replace: bool = False) -> Registered:
        """Publish the adapter in the directory ``path``, and put it on the device if there is room.

        If the name has the same content already, that is what was asked for.

        Raises:
            AdapterNameError, SourceMissing, ArtifactError: nothing is registered then.
            AdapterExists: the name is the base model's or an alias's, or serves other content.
            AdapterTooLarge: it alone exceeds the memory given to adapters.
        """
        self.check_free(name, replace=True)
        wanted = Wanted(name, str(path), lambda into: copy(path, into), replace)
        return await self._publisher.publish_directory(wanted, path).done()

    async def load_fetched(
        self, name: str, source: str, fetch: Fetch, *, replace: bool = False
    ) -> Registered:
        """As :meth:`load`, of what ``fetch`` fills a directory with."""
        self.check_free(name, replace=True)
        return await self._publisher.publish_fetched(Wanted(name, source, fetch, replace)).done()

    def check_free(self, name: str, replace: bool) -> None:
        """Raise unless ``name`` may be published.

        Raises:
            AdapterNameError: it is malformed.
            AdapterExists: it is the base model's or an alias's, or serves and is not to be replaced.
        """
        check_name(name)
        if name == self._base:
            raise AdapterExists(f"{name!r} is the name of the base model")
        if name in self._mirror.aliases:
            raise AdapterExists(f"the name {name!r} is that of an alias")
        record = self._mirror.names.get(name)
        if record is not None and record.state is State.READY and not replace:
            raise AdapterExists(f"the name {name!r} is taken; unload it first or ask to replace it")

    async def rollback(self, name: str, revision: str | None = None) -> AdapterStatus:
        """Make ``name`` mean an earlier revision again: the one before, or that which ``revision`` begins.

        The revision that was current stays in the history, as the one before.

        Raises:
            AdapterNotFound: no such name, or no such revision in its history.
        """
        await self.catch_up()
        record = self._mirror.get(name)
        if revision is not None:
            digest = find_revision(record, revision)
        elif len(record.history) > 1:
            digest = record.history[1]
        else:
            raise AdapterNotFound(f"adapter {name!r} has no earlier revision")
        await self._mirror.change(name, lambda registry: registry.names.rollback(name, digest))
        return self._views.status(name)

    async def share(self, name: str, tenants: Sequence[str]) -> None:
        """Let those tenants, by name ("*": all), use ``name`` besides the one whose it is; no others.

        Raises:
            AdapterNotFound: no such name.
        """
        await self._mirror.change(name, lambda registry: registry.shares.put(name, tenants))

    async def share_more(self, name: str, tenants: Sequence[str], most: int) -> None:
        """Let those tenants use ``name`` as well; nothing changes where there would be more than ``most``.

        Raises:
            AdapterNotFound: no such name.
        """
        await self._mirror.change(name, lambda registry: registry.shares.add(name, tenants, most))

    async def share_no_more(self, name: str, tenant: str) -> None:
        """Let a tenant use ``name`` no more.

        Raises:
            AdapterNotFound: no such name.
        """
        await self._mirror.change(name, lambda registry: registry.shares.remove(name, tenant))

    # Moving between tiers.

    async def pin(self, name: str) -> AdapterStatus:
        """Keep ``name`` on the device from now on, whatever its current revision is.

        Raises:
            AdapterNotFound: no such name, or it does not serve.
            AdapterTooLarge: it does not fit there beside what is pinned already.
            SourceMissing, ArtifactError: its files are gone or damaged.
        """
        await self._residency.make_resident(await self._current(name))
        await self._mirror.change(name, lambda registry: registry.names.set_pinned(name, True))
        return self._views.status(name)

    async def unpin(self, name: str) -> AdapterStatus:
        """Let ``name`` be evicted again; AdapterNotFound if there is no such name."""
        await self._mirror.change(name, lambda registry: registry.names.set_pinned(name, False))
        return self._views.status(name)

    async def prefetch(self, name: str) -> AdapterStatus:
        """Bring ``name`` in, to the device if evicting idle adapters makes room, else to host memory.

        Raises:
            AdapterNotFound: no such name, or it does not serve.
            AdapterTooLarge: pinned adapters leave it no room.
            AdapterInUse: running requests do, and host memory doesn't keep it.
            SourceMissing, ArtifactError: its files are gone or damaged.
        """
        await self._residency.prefetch(await self._current(name))
        return self._views.status(name)

    async def evict(self, name: str) -> AdapterStatus:
        """Take ``name``, with all its revisions, off the device and out of host memory; it stays on disk.

        Raises:
            AdapterNotFound: no such name.
            AdapterInUse: it is pinned, or requests run with it.
        """
        await self._residency.evict(self._mirror.get(name).history)
        return self._views.status(name)

    async def _current(self, name: str) -> str:
        """The revision that ``name`` serves; it is looked up if need be, as for a request."""
        if is_name(name):
            await self._resolver.look_up([MixTerm(name)])
        digest = self._mirror.get_ready(name).digest
        assert digest is not None
        return digest
