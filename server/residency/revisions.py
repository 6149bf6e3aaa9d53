"""One object for each revision that a server has to do with: who refers to it, and where it is."""

from __future__ import annotations

from collections.abc import Iterable

from manylora.server.names.status import Residency
from manylora.server.residency.device_cache import Placement
from manylora.server.residency.host_cache import Tiers
from manylora.server.residency.revision import Revision


class Revisions:
    """Revisions by digest. Lives on the event loop."""

    def __init__(self, tiers: Tiers, placement: Placement) -> None:
        self.tiers = tiers
        self.placement = placement
        self._revisions: dict[str, Revision] = {}
        self._pinned: frozenset[str] = frozenset()

    def revision(self, digest: str) -> Revision:
        """The one object that stands for a revision."""
        if digest not in self._revisions:
            self._revisions[digest] = Revision(digest, pinned=digest in self._pinned)
        return self._revisions[digest]

    def references(self, digests: Iterable[str]) -> int:
        """Requests that hold any of the revisions, running or waiting for room."""
        return sum(self._revisions[d].references for d in digests if d in self._revisions)

    def in_use(self) -> set[str]:
        """The revisions that some request holds."""
        return {digest for digest, revision in self._revisions.items() if revision.references}

    @property
    def num_references(self) -> int:
        """References that resolved requests hold."""
        return self.references(self._revisions)

    def is_resident(self, digest: str) -> bool:
        """Whether its pages are on the device."""
        return self.placement.is_resident(digest)

    def device_bytes(self, digest: str) -> int:
        """Bytes it takes on the device when it is there; 0 if that isn't known yet."""
        return self._revisions[digest].nbytes if digest in self._revisions else 0

    def residency(self, digest: str, stored: int) -> Residency:
        """Where its bytes are."""
        device = self.device_bytes(digest) if self.is_resident(digest) else 0
        return Residency(device, self.tiers.bytes_of(digest), stored)
