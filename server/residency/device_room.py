"""The room on the device: what is in it, and what is evicted for what.

Least recently used goes first, of what nobody runs with, is not pinned, and is guaranteed to no other tenant.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence

from manylora.adapters.errors import AdapterTooLarge
from manylora.server.engine.clients import Client
from manylora.server.kernels.inputs import AdapterPages
from manylora.server.metrics.adapter_metrics import AdapterMetrics
from manylora.server.model.pages.pool import PackedAdapter, PagePool
from manylora.server.residency.revision import Revision
from manylora.server.residency.shares import Shares

Packed = Sequence[tuple[Revision, PackedAdapter]]


class DeviceRoom:
    """The pool of pages and the revisions in it. Lives on the event loop."""

    def __init__(self, pool: PagePool, metrics: AdapterMetrics) -> None:
        self._pool = pool
        self._metrics = metrics
        self._shares = Shares()
        self._resident: OrderedDict[str, Revision] = OrderedDict()  # least recently used first
        self.changes = 0  # of what is there, so far

    def __len__(self) -> int:
        return len(self._resident)

    def __contains__(self, digest: str) -> bool:
        return digest in self._resident

    def __iter__(self) -> Iterator[Revision]:
        return iter(self._resident.values())

    @property
    def used_bytes(self) -> int:
        return self._pool.used_bytes

    @property
    def pinned_bytes(self) -> int:
        """Device bytes that pinned revisions take."""
        return sum(revision.nbytes for revision in self if revision.pinned)

    def add(self, revision: Revision) -> None:
        """The pages of a revision, which were reserved, are complete."""
        self._resident[revision.digest] = revision
        self.changes += 1

    def use(self, members: Sequence[Revision], client: Client) -> None:
        """A request of ``client`` runs with ``members``, all of which are there."""
        for revision in members:
            self._resident.move_to_end(revision.digest)
        self._shares.used(client, members)

    def evict(self, revision: Revision) -> int:
        """Take out a revision that is there and that nobody may run with; returns the bytes freed."""
        assert not revision.admitted
        assert revision.pages is not None
        pages, revision.pages = revision.pages, None
        del self._resident[revision.digest]
        self.changes += 1
        self._shares.removed(revision)
        return self._pool.release(pages)

    def check_fits(self, members: Sequence[Revision]) -> None:
        """Refuse a set that could wait for ever.

        Raises:
            AdapterTooLarge: it takes more than the device has for adapters that are not pinned.
        """
        needed = sum(r.nbytes for r in members)
        pinned = sum(r.nbytes for r in self if r.pinned and r not in members)
        if needed + pinned > self._pool.capacity_bytes:
            beside = f", of which {pinned} are taken by pinned adapters" if pinned else ""
            raise AdapterTooLarge(
                f"this mix needs {needed} bytes of adapter memory, the server has "
                f"{self._pool.capacity_bytes}{beside}"
            )

    def guaranteed(self) -> Collection[Revision]:
        """What all clients are guaranteed."""
        return self._shares.guaranteed_to_others(None, self._pool.capacity_bytes - self.pinned_bytes)

    def spared(self, members: Sequence[Revision], client: Client) -> Collection[Revision]:
        """What others are guaranteed, and is not evicted so that ``members`` can be there for ``client``.

        That is nothing if beside it they could never be there, whatever else was evicted.
        """
        shared = self._pool.capacity_bytes - self.pinned_bytes
        found = self._shares.guaranteed_to_others(client, shared) - set(members)
        needed = sum(r.nbytes for r in members if not (r.pinned and r.digest in self))
        return found if needed + sum(r.nbytes for r in found) <= shared else ()

    def reserve(
        self, wanted: Packed, *, keep: Collection[Revision] = (), spared: Collection[Revision] = ()
    ) -> tuple[bool, Sequence[Revision]]:
        """Take room for all of ``wanted``, evicting idle revisions outside ``keep`` and ``spared``.

        Returns whether there is room, for all or for nothing, and what has stepped aside and has to be
        brought back: what is spared does where the free room is enough but in pieces.
        """
        taken: list[tuple[Revision, AdapterPages]] = []
        aside: list[Revision] = []
        for revision, packed in wanted:
            pages = self._reserve(packed, {*keep, *spared})
            if pages is None and spared:
                pages = self._reserve_in_pieces(packed, keep, aside)
            if pages is None:
                for _, earlier in taken:
                    self._pool.release(earlier)
                return False, aside
            taken.append((revision, pages))
        for revision, pages in taken:
            revision.pages = pages
            revision.admitted += 1
        return True, aside

    def check(self) -> None:
        """Assert that pool and residents agree."""
        self._pool.check()
        assert sum(r.nbytes for r in self) == self._pool.used_bytes

    def _idle(self, keep: Collection[Revision]) -> Iterator[Revision]:
        return (r for r in self if not (r.admitted or r.pinned) and r not in keep)

    def _reserve(self, packed: PackedAdapter, keep: Collection[Revision]) -> AdapterPages | None:
        while (pages := self._pool.reserve(packed)) is None:
            victim = next(self._idle(keep), None)
            if victim is None:
                return None
            self.evict(victim)
            self._metrics.evicted()
        return pages

    def _reserve_in_pieces(
        self, packed: PackedAdapter, keep: Collection[Revision], aside: list[Revision]
    ) -> AdapterPages | None:
        """Move what is idle out of the way, if there is room for it elsewhere and that helps."""
        movable = [revision.pages for revision in self._idle(keep) if revision.pages is not None]
        free = self._pool.capacity_bytes - self.used_bytes
        if packed.data.nbytes > free or not self._pool.would_fit(packed, movable):
            return None
        while (pages := self._pool.reserve(packed)) is None:
            aside.append(next(self._idle(keep)))
            self.evict(aside[-1])
        return pages
