"""Publishing a revision so that no kill, at any moment, leaves a name with half of one.

    announce   the registry says that the name is loading (a name that serves goes on serving)
    fetch      the files come to a temporary directory of this process
    validate   they are read and checked there, which also gives the digest
    settle     what a revision keeps is synced to disk, the rest is dropped
    move in    one rename makes the directory the revision
    register   one transaction makes the name point to it

Whatever is left of a publication that was cut off is the temporary directory, an announced name, or a
revision that no name refers to. Opening the store removes the first, :func:`reconcile` the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from pathlib import Path

from manylora.adapters.errors import AdapterDeleted, AdapterError, AdapterExists
from manylora.adapters.registry.records import NameRecord, RevisionRecord, State
from manylora.adapters.registry.recovery import Agreement
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.store import RevisionStore

KEEP_FAILED_SECONDS = 3600.0  # for which a name is shown whose first publication failed


@dataclass(frozen=True)
class Published:
    """A name as it is now registered, and where its revision lies."""

    name: NameRecord
    directory: Path


@dataclass(frozen=True)
class Reconciled:
    """What :func:`reconcile` found and put right."""

    abandoned: tuple[str, ...]  # names that a dead process was loading or draining
    agreement: Agreement
    freed: int  # bytes of orphaned revisions


def publish(
    registry: Registry,
    store: RevisionStore,
    name: str,
    *,
    fetch: Callable[[Path], str | None],  # returns the exact source, where it knows it better than ``source``
    validate: Callable[[Path], RevisionRecord],
    source: str,
    tags: Collection[str] | None = None,
    replace: bool = True,
    reclaim_old: bool = True,
    announced: NameRecord | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Published:
    """Bring in a revision and make ``name`` point to it. Blocks; call it from a worker thread.

    ``fetch`` fills an empty directory with regular files; ``validate`` reads them and says what they
    are. ``on_step`` is called after each step with its name: announce, fetch, validate, settle, move in,
    register. ``announced`` is what the registry said if the name was announced before this is called.
    Revisions that drop out of the name's history are deleted, unless ``reclaim_old`` is false:
    a server waits until no request runs with them. A fault is recorded with the name, and raised.

    Raises:
        AdapterNameError, AdapterExists: before anything is fetched, or when another was faster.
        AdapterDeleted: the name was deleted after it was announced.
        StoreError: the disk or the database refused.
        AdapterError: what ``fetch`` and ``validate`` raise.
    """
    before = registry.begin(name, source, tags or (), announced=announced)
    moved_in: list[str] = []
    try:
        on_step("announce")
        if not replace and before.state is State.READY:
            raise AdapterExists(f"the name {name!r} is taken; unload it first or ask to replace it")
        with store.temporary() as temporary:
            exact = fetch(temporary)
            on_step("fetch")
            revision = validate(temporary)
            on_step("validate")
            if exact is not None:
                revision = dataclass_replace(revision, source=exact)
            store.settle(temporary)
            on_step("settle")
            with store.publishing():
                directory = store.move_in(temporary, revision.digest)
                moved_in.append(revision.digest)
                on_step("move in")
                record = registry.publish(
                    name, revision, replace=replace, source=source, tags=tags, announced=before
                )
            on_step("register")
    except (AdapterExists, AdapterDeleted):  # what is there, if anything, says nothing of this attempt
        reclaim(registry, store, moved_in)
        raise
    except BaseException as error:
        with suppress(AdapterError):  # the first fault is the one to tell
            registry.fail(name, str(error) if isinstance(error, AdapterError) else "an unexpected fault")
        raise
    if reclaim_old:
        reclaim(registry, store, set(before.history) - set(record.history))
    return Published(record, directory)


def reclaim(registry: Registry, store: RevisionStore, digests: Iterable[str]) -> int:
    """Delete those of ``digests`` that no name refers to any more; the bytes of disk they took.

    Raises:
        StoreError: the disk or the database refused.
    """
    wanted = sorted(set(digests))
    return sum(store.discard(wanted, registry.referenced).values()) if wanted else 0


def reconcile(registry: Registry, store: RevisionStore) -> Reconciled:
    """Make registry and disk agree, when a server starts or another may have died.

    What living processes do is left alone.

    Raises:
        StoreError: the disk or the database refused, or the two do not belong together.
    """
    registry.bind(store.identity)
    store.sweep()
    abandoned: list[str] = []
    agreements: list[Agreement] = []

    def settled() -> set[str]:  # nobody publishes or removes meanwhile
        abandoned.extend(_bury(registry, store))
        agreements.append(registry.agree({digest for digest in store.digests() if store.has(digest)}))
        return registry.referenced()

    freed = store.discard(None, settled)
    return Reconciled(tuple(abandoned), agreements[0], sum(freed.values()))


def tend(registry: Registry, store: RevisionStore) -> tuple[str, ...]:
    """What of :func:`reconcile` can be done while requests run; returns the names that were changed.

    What dead processes left half done goes, names whose files are back serve again, and names that never
    served are forgotten an hour after they failed. Revisions that no name has are left to :class:`Orphans`:
    a request may wait for them. Where files are missing is seen when they are read.

    Raises:
        StoreError: the disk or the database refused.
    """
    store.sweep()
    dead = _bury(registry, store)
    return (*dead, *registry.recover(store.has), *registry.expire(KEEP_FAILED_SECONDS))


class Orphans:
    """Revisions that no name has and nobody frees, such as those of a publisher that was killed.

    One is deleted when two looks in a row have found it, so whoever looks decides by its pauses how long
    a revision stays that another server has just left nameless, and may still run requests with.
    """

    def __init__(self, registry: Registry, store: RevisionStore) -> None:
        self._registry = registry
        self._store = store
        self._before: frozenset[str] = frozenset()

    def look(self, in_use: Collection[str]) -> dict[str, int]:
        """Delete what was an orphan at the last look and is one still, except what is ``in_use`` here.

        Returns the bytes of disk of each revision that was deleted. Blocks.

        Raises:
            StoreError: the disk or the database refused.
        """
        orphans = set(self._store.digests()) - self._registry.referenced() - set(in_use)
        again = orphans & self._before
        self._before = frozenset(orphans - again)
        return self._store.discard(again, self._registry.referenced) if again else {}


def _bury(registry: Registry, store: RevisionStore) -> list[str]:
    """Give up what dead processes were loading or draining; the names."""
    dead = [record for record in registry.unfinished() if not store.alive(record.owner)]
    for record in dead:
        registry.abandon(record.name, record.owner)
    return [record.name for record in dead]
