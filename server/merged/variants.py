"""Merged copies: mixes whose weights were added into a copy of the base's, kept beside it.

A copy is built by a thread of low priority that, while there are answers in progress, pauses after every
matrix for three times as long as it took. Base and adapters run on unchanged:
nothing that a step reads is written, and freeing a copy only drops it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Event

from manylora.adapters.errors import AdapterNotFound, AdapterTooLarge
from manylora.adapters.format.weights.delta import ModuleDelta
from manylora.adapters.merge.survival import Survival
from manylora.adapters.mix import MixEntry, mix_digest
from manylora.server.kernels.weights import MergedWeights
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.decoders.decoder import Decoder
from manylora.server.model.decoders.merging import Members, merge, merged_elements
from manylora.server.threads import LimitedWork

_PAUSE = 3.0  # times what was computed before
DRAIN_SECONDS = 30.0  # that requests get which run on an automatic copy whose room is needed


class VariantState(StrEnum):
    """Where a merged copy is in its life."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class MergeError:
    """How a merged copy differs from the mix it was made of, over the rows of the probe prompts."""

    rows: int
    max_logit_difference: float  # relative to the largest logit
    mean_kl: float  # nats
    top1_agreement: float  # 0 to 1


@dataclass(eq=False)
class Variant:
    """One merged copy. Read by anyone on the event loop, changed by :class:`Variants`."""

    model: str  # the mix it was made of, with revisions: "support@3f9a1c2e*0.7"
    entries: tuple[MixEntry, ...]
    weights: MergedWeights
    nbytes: int  # it takes, or will take
    automatic: bool = False  # nobody asked for it
    created: float = field(default_factory=time.time)  # unix seconds
    last_used: float = field(default_factory=time.time)
    state: VariantState = VariantState.BUILDING
    progress: float = 0.0
    seconds: float | None = None  # it took to build
    error: str | None = None
    measured: MergeError | None = None
    effect_kept: float | None = None  # share of the change of weights that their rounding has left
    references: int = 0  # requests that run with it
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: Event = field(default_factory=Event)  # tells the thread that builds it

    @property
    def key(self) -> bytes:
        """The digest of its mix."""
        return mix_digest(self.entries)

    def refer(self) -> None:
        """Count one more request that runs with it."""
        self.references += 1
        self.last_used = time.time()
        self.unused.clear()

    def release(self) -> None:
        """End one reference."""
        self.references -= 1
        if not self.references:
            self.unused.set()


Read = Callable[[str], Mapping[str, ModuleDelta]]  # the deltas of a revision by its digest; blocks
Measure = Callable[[Variant], Awaitable[MergeError]]


class Variants:
    """The merged copies of a server, within a budget of bytes; those idle longest make room. Event loop."""

    def __init__(
        self,
        decoder: Decoder,
        read: Read,
        measure: Measure,
        metrics: Metrics,
        *,
        busy: Callable[[], bool],
        budget: int,
        element_bytes: int,
        building: LimitedWork,
    ) -> None:
        """Nothing is built until it is asked for.

        Args:
            decoder: whose weights are copied.
            read: the deltas of a revision.
            measure: how far a copy is from the mix it was made of.
            metrics: are told how many copies there are.
            busy: whether answers are in progress.
            budget: bytes of all copies together.
            element_bytes: of one weight as it computes.
            building: runs what builds, one copy at a time.
        """
        self._decoder = decoder
        self._read = read
        self._measure = measure
        self._busy = busy
        self._budget = budget
        self._element_bytes = element_bytes
        self._variants: dict[bytes, Variant] = {}
        self._building: dict[Variant, asyncio.Task[None]] = {}
        self._draining: set[Variant] = set()
        self._work = building
        metrics.adapters.ask_merged(lambda: len(self._in_memory()), lambda: self.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all copies in memory. It may be asked for in any thread."""
        return sum(variant.nbytes for variant in self._in_memory())

    def _in_memory(self) -> set[Variant]:
        """Every copy that takes memory, also where it is no longer to be had.

        Requests may still hold it, or the thread that builds it has not stopped yet. Each collection is
        copied in one step, so that this is safe in any thread.
        """
        held = {variant for variant in list(self._draining) if variant.references}
        return held.union(list(self._variants.values()), list(self._building))

    def list(self) -> list[Variant]:
        """Every copy, in order of creation."""
        return list(self._variants.values())

    def find(self, entries: Sequence[MixEntry]) -> Variant | None:
        """The copy of a mix, in whatever state."""
        return self._variants.get(mix_digest(entries))

    def ready(self, entries: Sequence[MixEntry], model: str) -> Variant:
        """The copy of a mix, ready to run; ``model`` is what the client called the mix.

        Raises:
            AdapterNotFound: there is none, or it is not ready.
        """
        variant = self.find(entries)
        if variant is None:
            raise AdapterNotFound(
                f"there is no merged copy of {model!r}; POST /v1/adapters/{model}/merge makes one"
            )
        if variant.state is not VariantState.READY:
            raise AdapterNotFound(f"the merged copy of {model!r} is not ready: it is {variant.state.value}")
        return variant

    async def build(self, entries: Sequence[MixEntry], model: str, *, automatic: bool = False) -> Variant:
        """Begin to build the copy of a mix, unless it is there or being built; see :meth:`finished`.

        ``automatic``: nobody asked for it, so it takes no room from copies that somebody did ask for,
        while it gives way to them, in use or not.

        Raises:
            ArtifactError, SourceMissing: the files of a member are gone or damaged.
            AdapterTooLarge: it does not fit into the budget beside the copies in use.
        """
        if (known := self._known(entries, automatic)) is not None:
            return known
        members = await self._work.run(
            lambda: [(self._read(entry.digest), entry.weight) for entry in entries]
        )
        nbytes = merged_elements(self._decoder, members) * self._element_bytes
        if not automatic:
            await self._retreat(nbytes)
        if (known := self._known(entries, automatic)) is not None:
            return known
        self._make_room(nbytes, model, automatic)
        variant = Variant(model, tuple(entries), self._decoder.merged(), nbytes, automatic)
        self._variants[variant.key] = variant
        self._building[variant] = asyncio.create_task(self._build(variant, members))
        return variant

    def _known(self, entries: Sequence[MixEntry], automatic: bool) -> Variant | None:
        """The copy of a mix, unless it has failed; from now on it is one that was asked for."""
        known = self.find(entries)
        if known is None or known.state is VariantState.FAILED:
            return None
        known.automatic &= automatic
        return known

    async def finished(self, variant: Variant) -> None:
        """Wait until a copy is ready or has failed."""
        task = self._building.get(variant)
        if task is not None:
            await asyncio.shield(asyncio.wait({task}))

    async def free(self, variant: Variant, deadline: float) -> int:
        """Drop a copy: no request gets it any more. Returns the bytes freed; 0 if requests still held it
        after ``deadline`` seconds, whose end frees it."""
        await self._drop(variant)
        if variant.references:
            with suppress(TimeoutError):
                await asyncio.wait_for(variant.unused.wait(), deadline)
        return 0 if variant.references else variant.nbytes

    def forget(self, digests: Collection[str]) -> None:
        """Drop the copies made of any of these revisions, which no name has any more."""
        for variant in self.list():
            if any(entry.digest in digests for entry in variant.entries):
                self._take_out(variant)

    async def close(self) -> None:
        """Stop building."""
        for variant in self.list():
            await self._drop(variant)
        await asyncio.gather(*self._building.values())

    async def _drop(self, variant: Variant) -> None:
        self._take_out(variant)
        await self.finished(variant)

    def _take_out(self, variant: Variant) -> None:
        if self._variants.get(variant.key) is variant:
            del self._variants[variant.key]
        variant.stopped.set()
        self._draining = {held for held in (*self._draining, variant) if held.references}

    async def _retreat(self, nbytes: int) -> None:
        """Free automatic copies where ``nbytes`` more do not fit beside them."""
        for variant in [v for v in self.list() if v.automatic]:
            if self.nbytes + nbytes > self._budget:
                await self.free(variant, DRAIN_SECONDS)

    def _make_room(self, nbytes: int, model: str, automatic: bool) -> None:
        idle = [
            v
            for v in self._variants.values()
            if not v.references and v.state is not VariantState.BUILDING and v.automatic >= automatic
        ]
        for variant in sorted(idle, key=lambda v: v.last_used):
            if self.nbytes + nbytes <= self._budget:
                return
            self._take_out(variant)
        if self.nbytes + nbytes > self._budget:
            raise AdapterTooLarge(
                f"a merged copy of {model!r} needs {nbytes} bytes; of the {self._budget} for such copies "
                f"(--merge-memory), {self.nbytes} are in use"
            )

    async def _build(self, variant: Variant, members: Members) -> None:
        began = time.monotonic()
        try:
            await self._work.run(self._fill, variant, members)
            if variant.stopped.is_set():
                variant.error, variant.state = "it was freed while it was being built", VariantState.FAILED
                return
            variant.seconds = time.monotonic() - began
            variant.measured = await self._measure(variant)
            variant.state = VariantState.READY
        except Exception as error:
            variant.error, variant.state = str(error) or type(error).__name__, VariantState.FAILED
        finally:
            del self._building[variant]

    def _fill(self, variant: Variant, members: Members) -> None:
        """Compute and write the merged weights, matrix by matrix. Runs in a worker thread."""
        survival = Survival()
        matrices = merge(self._decoder, members, variant.weights, survival)
        while not variant.stopped.is_set():
            began = time.monotonic()
            share = next(matrices, None)
            if share is None:
                variant.effect_kept = survival.share
                return
            variant.progress = share
            if self._busy():
                variant.stopped.wait(_PAUSE * (time.monotonic() - began))
