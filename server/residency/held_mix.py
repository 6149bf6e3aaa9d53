"""What one request holds of adapters, from the moment its model string is resolved until its last event."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Protocol, Self

from manylora.adapters.registry.records import AliasArm
from manylora.server.engine.clients import EVERYBODY
from manylora.server.engine.order.turns import NO_TENANT, Asker
from manylora.server.engine.sequence import ResolvedMix
from manylora.server.kernels.weights import MergedWeights
from manylora.server.residency.open_requests import OpenRequest
from manylora.server.residency.residency import Residency
from manylora.server.residency.revision import Revision


class HoldState(Enum):
    """Where a held mix is in its life; it goes through these in order and never back."""

    RESOLVED = "resolved"  # its revisions can't be freed, and may still have to be brought to the device
    ADMITTED = "admitted"  # its revisions are on the device and stay there
    RELEASED = "released"


class MergedCopy(Protocol):
    """The copy of the base's weights that runs instead of a mix's members."""

    @property
    def weights(self) -> MergedWeights: ...

    def refer(self) -> None:
        """Count one more request."""

    def release(self) -> None:
        """Count one request less."""


@dataclass(frozen=True, slots=True)
class RevisionMix:
    """A mix of revisions, and how it is called. All that share one hold it unchanged."""

    entries: tuple[tuple[Revision, float], ...]  # in canonical order, with weights; () is the base model
    served_model: str  # with the revisions that answer: "support@3f9a1c2e*0.7"
    label: str  # in the metrics
    digest: bytes  # manylora.adapters.mix.mix_digest; b"" is the base model
    names: frozenset[str] = frozenset()  # of the adapters that were asked for; aliases are replaced


class HeldMix:
    """One holder of a mix: resolved, then admitted, then released.

    As a context manager it is released at the end of the block, whatever state it is in. Streams that outlive
    the block hold a :meth:`share` of their own.
    """

    def __init__(
        self,
        residency: Residency,
        revisions: RevisionMix,
        *,
        copy: MergedCopy | None = None,
        arm: AliasArm | None = None,
        request: OpenRequest | None = None,
    ) -> None:
        """Reference every revision, and with a new request ``copy``.

        Args:
            residency: where the revisions are brought in.
            revisions: what is held.
            copy: the merged copy that runs instead of the members, if one does.
            arm: of the alias that was asked for, if one was.
            request: that this is one more holder of; None: a new one.
        """
        self.revisions = revisions
        self.copy = copy
        self.arm = arm
        self.state = HoldState.RESOLVED
        self._residency = residency
        self._mix: ResolvedMix | None = None
        self._client = EVERYBODY  # for whom it is admitted
        references = residency.references
        references.add(self.members)
        digests = [revision.digest for revision in self.members]
        self._request = references.requests.begin(revisions.names, digests) if request is None else request
        if self._request.add_holder() and copy is not None:
            copy.refer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def entries(self) -> tuple[tuple[Revision, float], ...]:
        """The members with their weights, in canonical order."""
        return self.revisions.entries

    @property
    def members(self) -> tuple[Revision, ...]:
        """The revisions of the mix; () for the base model."""
        return tuple(revision for revision, _ in self.revisions.entries)

    @property
    def served_model(self) -> str:
        """The mix with the revisions that answer, as a model string."""
        return self.revisions.served_model

    @property
    def is_base(self) -> bool:
        """Whether the base model answers alone."""
        return not self.revisions.entries

    @property
    def mix(self) -> ResolvedMix:
        """What the engine runs with, once admitted."""
        assert self._mix is not None, "only an admitted mix can run"
        return self._mix

    def try_admit(self, asker: Asker = NO_TENANT) -> bool:
        """Admit it if that needs no waiting; says whether it is admitted. ``asker`` wants it."""
        assert self.state is HoldState.RESOLVED
        waits = self.copy is None and self.members  # a copy's weights are there, like the base's
        if waits and not self._residency.device.try_acquire(self.members, asker):
            return False
        self._set_admitted(asker)
        return True

    async def admit(self, asker: Asker = NO_TENANT) -> None:
        """Wait for every member to be on the device. If that fails, or is cancelled, it stays resolved.

        Raises:
            AdapterNotFound: a member was deleted meanwhile, and its files with it.
            AdapterTooLarge: the members can't be on the device together, beside what is pinned there.
            SourceMissing, ArtifactError: its files are gone or damaged.
            QueueFull: too many requests wait for adapters.
        """
        if not self.try_admit(asker):
            await self._residency.acquire(self.members, asker)
            self._set_admitted(asker)

    def share(self) -> HeldMix:
        """Another holder of the same mix, admitted at once: its members are on the device already.

        A request with several prompts admits one holder and shares it. If it queued for each, it could wait
        behind a request that waits for the very memory it holds.
        """
        assert self.state is HoldState.ADMITTED
        shared = self.again()
        if self.copy is None:
            self._residency.device.hold(self.members, self._client)
        shared.state, shared._mix, shared._client = HoldState.ADMITTED, self._mix, self._client
        return shared

    def again(self) -> HeldMix:
        """Another holder of the same revisions, to be admitted later, whatever their names mean by then."""
        assert self.state is not HoldState.RELEASED
        return HeldMix(self._residency, self.revisions, copy=self.copy, arm=self.arm, request=self._request)

    def release(self) -> None:
        """Give the references back. Calling it again does nothing."""
        state, self.state = self.state, HoldState.RELEASED
        if state is HoldState.RELEASED:
            return
        if self.copy is None and state is HoldState.ADMITTED and self.members:
            self._residency.device.release(self.members)
        self._residency.references.remove(self.members)
        if self._request.remove_holder() and self.copy is not None:
            self.copy.release()

    def _set_admitted(self, asker: Asker) -> None:
        self.state, self._client = HoldState.ADMITTED, asker.client
        self._mix = self._runnable()

    def _runnable(self) -> ResolvedMix:
        mix = self.revisions
        if self.copy is not None:  # K and V differ from the mix's by rounding: their blocks are apart
            return ResolvedMix((), b"merged:" + mix.digest, mix.label, self.copy.weights)
        pages = [(revision.pages, weight) for revision, weight in mix.entries]
        members = tuple((p, w) for p, w in pages if p is not None)
        assert len(members) == len(pages), "an admitted mix has resident revisions only"
        return ResolvedMix(members, mix.digest, mix.label)
