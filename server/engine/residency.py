"""The adapters a request can name: registration, resolution of mixes, references.

A request resolves its model string exactly once; from then on it holds the revisions it found, and
a name that is re-published or removed meanwhile does not concern it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.artifact import Artifact, Limits, read_artifact
from adapters.base import BaseModel
from adapters.errors import (
    AdapterError,
    AdapterExists,
    AdapterNotFound,
    AdapterTooLarge,
    ArtifactError,
    MixError,
)
from adapters.mix import MixEntry, MixTerm, check_name, mix_digest, normalize
from adapters.store import RevisionStore
from server.engine.placement import Placement, Revision
from server.engine.sequence import ResolvedMix
from server.metrics import BASE, MIX, Metrics
from server.model.norms import NormFile
from server.model.pages import PackedAdapter, PagePool

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 30.0  # how long an unload waits for running requests before it answers
_SHOWN_DIGITS = 8  # of a digest, in model strings


@dataclass(frozen=True)
class Registered:
    """What the API shows of a name."""

    name: str
    digest: str
    source: Path
    rank: int
    modules: int
    nbytes: int
    resident: bool
    created: float  # unix seconds


@dataclass(frozen=True)
class _Name:
    revision: Revision
    source: Path
    created: float


@dataclass(eq=False)
class Resolution:
    """A mix whose revisions are referenced, though perhaps not on the device yet."""

    entries: tuple[tuple[Revision, float], ...]
    served_model: str
    label: str
    digest: bytes
    leased: bool = False
    dropped: bool = False

    @property
    def members(self) -> tuple[Revision, ...]:
        return tuple(revision for revision, _ in self.entries)


class Lease:
    """The right to run with a mix, whose members stay on the device until :meth:`release`."""

    def __init__(self, manager: AdapterManager, resolution: Resolution) -> None:
        self._manager = manager
        self._resolution = resolution
        self.served_model = resolution.served_model
        pages = [(revision.pages, weight) for revision, weight in resolution.entries]
        members = tuple((p, w) for p, w in pages if p is not None)
        assert len(members) == len(pages), "a lease covers resident revisions only"
        self.mix = ResolvedMix(members, resolution.digest, resolution.label)

    def share(self) -> Lease:
        """Another lease on the same mix, at once: its members are on the device already.

        A request with several prompts takes one lease and shares it. If it queued for each, it could
        wait in line behind a request that waits for the very memory it holds.
        """
        return self._manager.share(self._resolution)

    def release(self) -> None:
        """Give the references back. Calling it again does nothing."""
        self._manager.drop(self._resolution)


class AdapterManager:
    """Names, the revisions they point to, and the requests that hold those."""

    def __init__(
        self,
        *,
        base: BaseModel,
        store: RevisionStore,
        pool: PagePool,
        limits: Limits,
        metrics: Metrics,
        max_waiting: int = 1024,
    ) -> None:
        """``max_waiting`` bounds the requests that wait for adapters to be brought in."""
        self.base = base
        self._store = store
        self._pool = pool
        self._limits = limits
        self._metrics = metrics
        self._placement = Placement(pool, self._read, max_waiting=max_waiting)
        self._names: dict[str, _Name] = {}
        self._revisions: dict[str, Revision] = {}
        self._publishing = asyncio.Lock()
        self._loading: set[asyncio.Task[Registered]] = set()
        self._retiring: dict[str, asyncio.Task[int]] = {}  # by digest
        self._unused: dict[str, asyncio.Event] = {}  # by digest, of those retiring

    async def load(self, name: str, path: Path, *, replace: bool = False) -> Registered:
        """Publish the adapter at ``path`` under ``name``, and put it on the device if there is room.

        Raises:
            AdapterNameError, AdapterExists, SourceMissing, ArtifactError: nothing is registered then.
            AdapterTooLarge: it alone exceeds the memory given to adapters.
        """
        check_name(name)
        # Seen through even if the caller is cancelled: half a load would leave pages or a copy behind.
        work = asyncio.create_task(self._load(name, path, replace))
        self._loading.add(work)
        work.add_done_callback(self._loading.discard)
        return await asyncio.shield(work)

    async def _load(self, name: str, path: Path, replace: bool) -> Registered:
        began = time.monotonic()
        async with self._publishing:
            if name in self._names and not replace:
                raise AdapterExists(f"the name {name!r} is taken; unload it first or ask to replace it")
            artifact, directory, packed = await asyncio.to_thread(self._publish, path)
            revision = self._revisions.get(artifact.digest)
            if revision is None:
                revision = Revision(
                    digest=artifact.digest,
                    directory=directory,
                    rank=artifact.rank,
                    modules=len(artifact.delta),
                    nbytes=packed.data.numel() * packed.data.element_size(),
                )
                self._revisions[revision.digest] = revision
            entry = self._point(name, revision, path)
            self._metrics.adapter_loaded(name, time.monotonic() - began)
            await self._placement.offer(revision, packed)
        self._observe()
        return _registered(name, entry)  # which an unload may have removed meanwhile

    async def unload(self, name: str) -> int:
        """Forget ``name``: new requests are refused at once, running ones finish, then its memory is freed.

        Returns the device bytes freed; 0 if another name shares the revision, or if requests still
        ran after 30 seconds (their end frees it).

        Raises:
            AdapterNotFound: no such name.
        """
        revision = self._lookup(name).revision
        del self._names[name]
        revision.names.discard(name)
        self._metrics.forget(name)
        self._observe()
        if revision.names:
            return 0
        retire = self._retire_later(revision)
        done, _ = await asyncio.wait({retire}, timeout=_DRAIN_SECONDS)
        return retire.result() if done else 0

    def list(self) -> list[Registered]:
        """Every registered name, in order of registration."""
        return [self.get(name) for name in self._names]

    def get(self, name: str) -> Registered:
        """One registered name.

        Raises:
            AdapterNotFound: no such name.
        """
        return _registered(name, self._lookup(name))

    def resolve(self, terms: Sequence[MixTerm]) -> Resolution:
        """Find the revisions of a mix and reference them.

        Raises:
            AdapterNotFound: a name, or its revision, is not registered.
            MixError: a variant is asked for.
            AdapterTooLarge: the members together exceed the memory given to adapters.
        """
        found = {(term.name, term.revision): self._find(term) for term in terms}
        entries = normalize(MixEntry(found[t.name, t.revision].digest, t.weight) for t in terms)
        members = tuple((self._revisions[e.digest], e.weight) for e in entries)
        needed = sum(revision.nbytes for revision, _ in members)
        if needed > self._placement.capacity_bytes:
            raise AdapterTooLarge(
                f"this mix needs {needed} bytes of adapter memory, the server has "
                f"{self._placement.capacity_bytes}"
            )
        for revision, _ in members:
            revision.references += 1
        return Resolution(members, self._describe(terms, found), _label(terms), mix_digest(entries))

    async def lease(self, resolution: Resolution) -> Lease:
        """Wait until every member is on the device; failure or cancellation drops the references."""
        try:
            await self._placement.acquire(resolution.members)
        except BaseException:
            self.drop(resolution)
            raise
        resolution.leased = True
        self._observe()
        return Lease(self, resolution)

    def base_lease(self) -> Lease:
        """The lease of the empty mix."""
        return Lease(self, Resolution((), self.base.name, BASE, b""))

    def share(self, resolution: Resolution) -> Lease:
        """A further lease on a mix that is leased now."""
        assert not resolution.dropped
        for revision in resolution.members:
            revision.references += 1
        self._placement.hold(resolution.members)
        return Lease(self, replace(resolution))

    def drop(self, resolution: Resolution) -> None:
        """Give a resolution's references back, once."""
        if resolution.dropped:
            return
        resolution.dropped = True
        if resolution.leased:
            self._placement.release(resolution.members)
        for revision in resolution.members:
            revision.references -= 1
            if not revision.references and revision.digest in self._unused:
                self._unused[revision.digest].set()

    async def close(self) -> None:
        """Stop background work and let go of the store."""
        await asyncio.gather(*self._loading, return_exceptions=True)
        await self._placement.close()
        for task in self._retiring.values():
            task.cancel()
        await asyncio.gather(*self._retiring.values(), return_exceptions=True)
        self._store.close()

    def check(self) -> None:
        """Assert that references, names and memory balance."""
        self._placement.check()
        assert all(entry.revision.digest in self._revisions for entry in self._names.values())
        assert all(0 <= r.leases <= r.references for r in self._revisions.values())

    @property
    def num_references(self) -> int:
        """References that resolved requests hold."""
        return sum(revision.references for revision in self._revisions.values())

    # Worker threads.

    def _publish(self, path: Path) -> tuple[Artifact, Path, PackedAdapter]:
        """Read and check the artifact at ``path``, then keep a copy that nobody else can change."""
        artifact = read_artifact(path, self.base, self._limits)
        packed = self._pool.pack(artifact.digest, artifact.delta, artifact.activation)
        needed = packed.data.numel() * packed.data.element_size()
        if needed > self._placement.capacity_bytes:
            raise AdapterTooLarge(
                f"this adapter needs {needed} bytes of adapter memory, the server has "
                f"{self._placement.capacity_bytes} (--adapter-memory)"
            )
        digest, directory = self._store.publish(path)
        if digest != artifact.digest:
            if digest not in self._revisions:
                self._store.remove(digest)
            raise ArtifactError(["the adapter's files changed while they were being read"])
        return artifact, directory, packed

    def _read(self, revision: Revision) -> PackedAdapter:
        artifact = read_artifact(revision.directory, self.base, self._limits)
        if artifact.digest != revision.digest:
            raise ArtifactError(
                [f"the stored copy of revision {revision.digest[:_SHOWN_DIGITS]} has changed"]
            )
        norms = NormFile.beside(
            revision.directory, revision.digest, self.base.fingerprint, self._pool.data.dtype
        )
        return self._pool.pack(artifact.digest, artifact.delta, artifact.activation, norms)

    # The event loop.

    def _lookup(self, name: str) -> _Name:
        try:
            return self._names[name]
        except KeyError:
            raise AdapterNotFound(f"no adapter is registered under the name {name[:140]!r}") from None

    def _find(self, term: MixTerm) -> Revision:
        revision = self._lookup(term.name).revision
        if term.revision == "merged":
            raise MixError(f"'{term.name}@merged': this server keeps no merged copies")
        if term.revision is not None and not revision.digest.startswith(term.revision):
            raise AdapterNotFound(
                f"adapter {term.name!r} has no revision {term.revision}; its revision is "
                f"{revision.digest[:_SHOWN_DIGITS]}"
            )
        return revision

    def _describe(self, terms: Sequence[MixTerm], found: dict[tuple[str, str | None], Revision]) -> str:
        """The mix as a model string that names the revisions it runs."""
        if not terms:
            return self.base.name
        parts = (
            f"{term.name}@{found[term.name, term.revision].digest[:_SHOWN_DIGITS]}"
            + ("" if term.weight == 1.0 else f"*{term.weight:g}")
            for term in terms
        )
        return "+".join(parts)

    def _point(self, name: str, revision: Revision, source: Path) -> _Name:
        """Make ``name`` mean ``revision`` from now on."""
        before = self._names.get(name)
        revision.names.add(name)
        entry = self._names[name] = _Name(revision, source, time.time())
        if before is not None and before.revision is not revision:
            before.revision.names.discard(name)
            if not before.revision.names:
                self._retire_later(before.revision)
        return entry

    def _retire_later(self, revision: Revision) -> asyncio.Task[int]:
        """Free a nameless revision once no request holds it."""
        task = self._retiring.get(revision.digest)
        if task is None:
            unused = self._unused[revision.digest] = asyncio.Event()
            if not revision.references:
                unused.set()
            task = self._retiring[revision.digest] = asyncio.create_task(self._retire(revision, unused))
        return task

    async def _retire(self, revision: Revision, unused: asyncio.Event) -> int:
        try:
            while True:
                await unused.wait()
                async with self._publishing:
                    if revision.names:  # published again meanwhile
                        return 0
                    if not revision.references:
                        return await self._free(revision)
                    unused.clear()  # published, requested and unloaded again meanwhile
        finally:
            del self._retiring[revision.digest], self._unused[revision.digest]

    async def _free(self, revision: Revision) -> int:
        """Drop an unused revision from device and disk; returns the device bytes freed."""
        del self._revisions[revision.digest]
        freed = await self._placement.remove(revision)
        try:
            await asyncio.to_thread(self._store.remove, revision.digest)
        except AdapterError as error:  # the name is gone and the memory free: that is what was asked for
            logger.warning("the stored copy of an unloaded adapter stays: %s", error)
        self._observe()
        return freed

    def _observe(self) -> None:
        self._metrics.adapters_registered(len(self._names))
        self._metrics.adapters_resident(self._placement.num_resident, self._placement.resident_bytes)


def _registered(name: str, entry: _Name) -> Registered:
    revision = entry.revision
    return Registered(
        name=name,
        digest=revision.digest,
        source=entry.source,
        rank=revision.rank,
        modules=revision.modules,
        nbytes=revision.nbytes,
        resident=revision.pages is not None,
        created=entry.created,
    )


def _label(terms: Sequence[MixTerm]) -> str:
    names = {term.name for term in terms}
    return BASE if not names else names.pop() if len(names) == 1 else MIX
