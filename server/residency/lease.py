"""What a request holds: the revisions its model string meant, and then the right to run with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from manylora.server.engine.sequence import ResolvedMix
from manylora.server.merged.variants import Variant
from manylora.server.names.aliases import Arm
from manylora.server.residency.revision import Revision


@dataclass(eq=False)
class Resolution:
    """A mix whose revisions are referenced, though perhaps not on the device yet."""

    entries: tuple[tuple[Revision, float], ...]
    served_model: str  # the mix with the revisions that answer: "support@3f9a1c2e*0.7"
    label: str  # in the metrics
    digest: bytes
    variant: Variant | None = None  # the merged copy that runs instead of the members
    arm: Arm | None = None  # of the alias that was asked for, if one was
    leased: bool = False  # a lease has the references, and ends them
    dropped: bool = False

    @property
    def members(self) -> tuple[Revision, ...]:
        return tuple(revision for revision, _ in self.entries)


class Holder(Protocol):
    """Who keeps the references of resolutions."""

    def share(self, resolution: Resolution) -> Lease:
        """A further lease on a mix that is leased now."""

    def drop(self, resolution: Resolution) -> None:
        """Give a resolution's references back, once."""


class Lease:
    """The right to run with a mix, whose members stay on the device until :meth:`release`."""

    def __init__(self, holder: Holder, resolution: Resolution) -> None:
        self._holder = holder
        self.resolution = resolution
        self.served_model = resolution.served_model
        self.mix = _running(resolution)

    def share(self) -> Lease:
        """Another lease on the same mix, at once: its members are on the device already.

        A request with several prompts takes one lease and shares it. If it queued for each, it could
        wait in line behind a request that waits for the very memory it holds.
        """
        return self._holder.share(self.resolution)

    def release(self) -> None:
        """Give the references back. Calling it again does nothing."""
        self._holder.drop(self.resolution)


def _running(resolution: Resolution) -> ResolvedMix:
    if resolution.variant is not None:  # K and V differ from the mix's by rounding: their blocks are apart
        digest = b"merged:" + resolution.digest
        return ResolvedMix((), digest, resolution.label, resolution.variant.weights)
    pages = [(revision.pages, weight) for revision, weight in resolution.entries]
    members = tuple((p, w) for p, w in pages if p is not None)
    assert len(members) == len(pages), "a lease covers resident revisions only"
    return ResolvedMix(members, resolution.digest, resolution.label)
