"""What each tenant is guaranteed of the device's memory for adapters: a share of it, by its weight.

The shares are of those that have adapters there. Of what a tenant uses, as much as fits into its share, what
was used last first, makes room for its own adapters only; the rest is borrowed, and goes to who needs it. All
who are no tenant count as one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from manylora.server.engine.clients import EVERYBODY, Client
from manylora.server.residency.revision import Revision

KEPT_SECONDS: Final = 3600.0  # after its last use, for which an adapter is guaranteed its place


@dataclass(slots=True)
class _Use:
    """What one client uses of what is on the device, least recently used first."""

    weight: float
    revisions: OrderedDict[Revision, float] = field(default_factory=OrderedDict)  # when it was used last


class Shares:
    """Who uses what is on the device. Lives on the event loop."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, _Use] = {}  # by client; empty as long as there are no tenants

    def used(self, client: Client, members: Iterable[Revision]) -> None:
        """A request of ``client`` runs with ``members``, which are on the device."""
        if client is EVERYBODY and not self._uses:
            return
        use = self._uses.setdefault(client.name, _Use(client.weight))
        use.weight, now = client.weight, self._clock()
        for revision in members:
            use.revisions[revision] = now
            use.revisions.move_to_end(revision)

    def removed(self, revision: Revision) -> None:
        """``revision`` is no more on the device."""
        for use in self._uses.values():
            use.revisions.pop(revision, None)

    def guaranteed_to_others(self, client: Client | None, capacity: int) -> set[Revision]:
        """What has its place whatever ``client`` needs, of memory with ``capacity`` bytes to be shared.

        Without a client it is what all are guaranteed.
        """
        own = None if client is None else client.name
        present = {name: use for name, use in self._uses.items() if use.revisions and name != own}
        total = sum(use.weight for use in present.values()) + (0.0 if client is None else client.weight)
        found: set[Revision] = set()
        for use in present.values():
            found.update(self._within(use, capacity * use.weight / total))
        return found

    def _within(self, use: _Use, share: float) -> Iterable[Revision]:
        """What fits into a share, what was used last first. Pinned ones stay anyway, and take none of it."""
        oldest = self._clock() - KEPT_SECONDS
        for revision, last in reversed(use.revisions.items()):
            if last < oldest:
                return
            if not revision.pinned and revision.nbytes <= share:
                share -= revision.nbytes
                yield revision
