"""Publishing adapters: the steps of ``adapters/registry/publish_revision.py``, run in worker threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

from manylora.adapters.errors import ArtifactError
from manylora.adapters.format.files import FileFault
from manylora.adapters.registry.publish_revision import PublishedRevision, publish_revision
from manylora.adapters.registry.records import NameRecord, RevisionRecord, State
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.copying import copy_artifact
from manylora.adapters.store.store import RevisionStore
from manylora.server.metrics.metrics import Metrics
from manylora.server.model.pages.pool import PackedAdapter
from manylora.server.names.admin.keyed_locks import KeyedLocks
from manylora.server.names.registry_mirror import RegistryMirror
from manylora.server.names.status import Registered, registered_of
from manylora.server.residency.residency import Residency
from manylora.server.residency.revision_loader import Fetch, RevisionLoader
from manylora.server.threads import LimitedWork


@dataclass(frozen=True)
class Wanted:
    """What is to be published under which name."""

    name: str
    source: str
    fetch: Fetch
    replace: bool = True
    tags: tuple[str, ...] | None = None  # None: keep those the name has


@dataclass(frozen=True)
class _Published:
    """What has become of a publication."""

    registered: Registered
    is_new: bool  # the name had no revision before


class Publication:
    """One revision on its way to a name. It is seen through whether or not anybody waits for it."""

    def __init__(self, name: str, source: str, work: asyncio.Task[_Published]) -> None:
        self.name = name
        self.source = source
        self._work = work

    @property
    def state(self) -> State:
        """LOADING, and in the end READY or FAILED."""
        if not self._work.done():
            return State.LOADING
        failed = self._work.cancelled() or self._work.exception() is not None
        return State.FAILED if failed else State.READY

    @property
    def error(self) -> str | None:
        """Why it failed."""
        if not self._work.done():
            return None
        return "the server is stopping" if self._work.cancelled() else _text(self._work.exception())

    def when_ended(self, act: Callable[[], None]) -> None:
        """Have a thread call ``act`` once this has ended, however."""
        loop = asyncio.get_running_loop()
        self._work.add_done_callback(lambda _: loop.run_in_executor(None, act))

    async def done(self) -> Registered:
        """Wait for the end; whoever waits may be cancelled, the work goes on.

        Raises:
            AdapterError: it failed. A name that served before goes on serving what it did.
        """
        return (await asyncio.shield(self._work)).registered

    @property
    def made_name(self) -> bool:
        """Whether this, having succeeded, is what gave the name its first revision."""
        return self._work.result().is_new


def _text(error: BaseException | None) -> str | None:
    return None if error is None else str(error)


class Publisher:
    """Runs publications, those of one name in the order in which they began.

    Several may begin before the first has ended, none of which may replace what serves: those with the
    content of the first join it, as its result is theirs, and those with other content fail.
    """

    def __init__(
        self,
        mirror: RegistryMirror,
        loader: RevisionLoader,
        residency: Residency,
        *,
        registry: Registry,
        store: RevisionStore,
        metrics: Metrics,
        fetching: LimitedWork,
        fetch: Callable[[str, Path], str] | None,
    ) -> None:
        """``fetching`` runs what fetches and checks; ``fetch(source, directory)`` blocks, None: no fetch."""
        self._mirror = mirror
        self._loader = loader
        self._residency = residency
        self._registry = registry
        self._store = store
        self._metrics = metrics
        self._order = KeyedLocks()
        self._running: set[asyncio.Task[_Published]] = set()
        self._fetching = fetching
        self._fetch = fetch

    @property
    def num_running(self) -> int:
        """Publications that have not ended."""
        return len(self._running)

    async def announce(self, wanted: Wanted) -> Publication:
        """Begin to publish; the registry says from now on what becomes of it.

        Raises:
            AdapterNameError, AdapterExists: the name or a tag can't be used.
        """
        record = await self._mirror.change(
            wanted.name,
            lambda registry: registry.names.announce(wanted.name, wanted.source, wanted.tags or ()),
        )
        return self._begin(wanted.name, wanted.source, self._publish(wanted, record))

    def publish_directory(self, wanted: Wanted, directory: Path) -> Publication:
        """Begin to publish what ``wanted`` copies from ``directory``, which is checked first.

        So a fault leaves no trace in the registry, and if the name is that revision already, nothing is
        copied.
        """
        return self._begin(wanted.name, wanted.source, self._publish_directory(wanted, directory))

    async def publish_found(self, name: str, source: str) -> None:
        """Publish what ``source`` has as ``name``; only what was fetched and is sound is announced.

        Raises:
            AdapterError: it can't be fetched, or can't be served.
        """
        fetch = self._fetch
        assert fetch is not None, "what can be found can be fetched"
        await self.publish_fetched(Wanted(name, source, lambda into: fetch(source, into))).done()

    def publish_fetched(self, wanted: Wanted) -> Publication:
        """Begin to publish what ``wanted`` fetches, which says what is to be recorded as its source.

        Only what was fetched and is sound is announced, so a fault leaves no trace in the registry.
        """
        return self._begin(wanted.name, wanted.source, self._publish_fetched(wanted))

    async def close(self) -> None:
        """Wait for what has begun."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def _begin(self, name: str, source: str, work: Coroutine[None, None, _Published]) -> Publication:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return Publication(name, source, task)

    def _ended(self, task: asyncio.Task[_Published]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whether or not somebody waited for it

    async def _publish_fetched(self, wanted: Wanted) -> _Published:
        stack = ExitStack()
        try:
            directory = await self._fetching.run(lambda: stack.enter_context(self._store.temporary()))
            exact = await self._fetching.run(lambda: wanted.fetch(directory))

            def again(into: Path) -> None:
                copy(directory, into)

            source = wanted.source if exact is None else exact
            return await self._publish_directory(replace(wanted, source=source, fetch=again), directory)
        finally:
            await self._fetching.run(stack.close)

    async def _publish_directory(self, wanted: Wanted, directory: Path) -> _Published:
        async with self._order.hold(wanted.name):
            found, packed = await self._fetching.run(lambda: self._loader.check(directory, wanted.source))
            record = self._mirror.names.get(wanted.name)
            if record is None or not _is_published(record, wanted, found.digest):
                return await self._publish_next(wanted)
            await self._residency.offer(packed)
            return _Published(self._registered(record, found, packed), is_new=False)

    async def _publish(self, wanted: Wanted, announced: NameRecord) -> _Published:
        async with self._order.hold(wanted.name):
            return await self._publish_next(wanted, announced)

    async def _publish_next(self, wanted: Wanted, announced: NameRecord | None = None) -> _Published:
        """Publish it now; whoever calls holds the name's place in the order."""
        began = monotonic()
        try:
            published, facts, packed = await self._fetching.run(lambda: self._publish_now(wanted, announced))
        finally:
            await self._mirror.refresh(wanted.name)
        await self._residency.offer(packed)
        self._metrics.adapters.loaded("publish", monotonic() - began)
        await self._fetching.run(lambda: self._loader.keep_packed(packed, facts.nbytes))
        return _Published(self._registered(published.name, facts, packed), published.is_new)

    def _registered(self, record: NameRecord, facts: RevisionRecord, packed: PackedAdapter) -> Registered:
        resident = self._residency.is_resident(facts.digest)  # it may have been deleted since
        return registered_of(record, facts, nbytes=packed.data.nbytes, resident=resident)

    def _publish_now(
        self, wanted: Wanted, announced: NameRecord | None
    ) -> tuple[PublishedRevision, RevisionRecord, PackedAdapter]:
        """The whole protocol, in a worker thread. Old revisions are left to those who hold them."""
        checked: list[tuple[RevisionRecord, PackedAdapter]] = []

        def validate(directory: Path) -> RevisionRecord:
            facts, packed = self._loader.check(directory, wanted.source, in_place=True)
            checked.append((facts, packed))
            return facts

        published = publish_revision(
            self._registry,
            self._store,
            wanted.name,
            fetch=wanted.fetch,
            validate=validate,
            source=wanted.source,
            tags=wanted.tags,
            replace=wanted.replace,
            join=True,
            delete_old=False,
            announced=announced,
        )
        return published, *checked[0]


def copy(directory: Path, into: Path) -> None:
    """Copy the files of an artifact; ArtifactError if they can't be read."""
    try:
        copy_artifact(directory, into)
    except FileFault as fault:
        raise ArtifactError([str(fault)]) from None


def _is_published(record: NameRecord, wanted: Wanted, digest: str) -> bool:
    """Whether ``record`` is already what publishing would make of it.

    What may not replace what serves is content with that content, whatever is recorded beside it.
    """
    if record.digest != digest or record.state is not State.READY:
        return False
    same = record.error is None and record.source == wanted.source and wanted.tags in {None, record.tags}
    return same or not wanted.replace
