"""Cleaning up, in registry and store, after processes that died and files that were lost.

:func:`recover` is for a server that starts, :func:`clean_up` and :class:`UnreferencedRevisions` are for one
that runs. What living processes do is left alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from manylora.adapters.registry.publication_record import read_record
from manylora.adapters.registry.recovery import FileChanges
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.kept_nameless import keep_nameless, kept_nameless
from manylora.adapters.store.store import RevisionStore

KEEP_FAILED_SECONDS = 3600.0  # for which a name is shown whose first publication failed


@dataclass(frozen=True)
class Recovered:
    """What a starting server found and put right in registry and store."""

    unfinished: tuple[str, ...]  # names that a dead process was loading or draining
    files: FileChanges
    freed: int  # bytes of revisions that no name referred to
    nameless: tuple[str, ...] = ()  # revisions without a name that are kept: see below


def recover(registry: Registry, store: RevisionStore) -> Recovered:
    """Make registry and disk agree, when a server starts or another may have died.

    Revisions without a name are deleted, except those whose names a registry knew that was lost: this one is
    new, or it is older than what is recorded beside them. They stay until they have a name again.

    Raises:
        StoreError: the disk or the database refused, or the two do not belong together.
    """
    registry.check_store(store.identity)
    store.remove_leftovers()
    kept = _keep_nameless(registry, store)
    registry.set_store(store.identity)
    unfinished: list[str] = []
    changes: list[FileChanges] = []

    def referenced() -> set[str]:  # nobody publishes or removes meanwhile
        unfinished.extend(_end_unfinished(registry, store))
        present = {digest for digest in store.digests() if store.has(digest)}
        changes.append(registry.recovery.match_files(present))
        return registry.revisions.referenced() | kept

    freed = store.discard(None, referenced)
    return Recovered(tuple(unfinished), changes[0], sum(freed.values()), tuple(sorted(kept)))


def nameless(registry: Registry, store: RevisionStore) -> list[str]:
    """The digests of the complete revisions in the store that no name of the registry has, sorted.

    Raises:
        StoreError: the disk or the database refused.
    """
    there = store.digests()  # first: what comes in later has no name yet, and is none of these
    named = registry.revisions.referenced()
    return [digest for digest in there if digest not in named and store.has(digest)]


def _keep_nameless(registry: Registry, store: RevisionStore) -> frozenset[str]:
    """Find and list the revisions without a name that are to be kept."""
    before, generation = kept_nameless(store), registry.generation
    found = nameless(registry, store)
    kept = frozenset(digest for digest in found if digest in before or _is_unknown(store, digest, generation))
    if kept != before:
        keep_nameless(store, kept)
    return kept


def _is_unknown(store: RevisionStore, digest: str, generation: int) -> bool:
    """Whether a registry in ``generation`` can't have known the revision."""
    record = read_record(store.root / digest, digest)
    return generation == 0 or (record is not None and record.generation > generation)


def clean_up(registry: Registry, store: RevisionStore) -> tuple[str, ...]:
    """Clean up after dead processes while requests run; returns the names that were changed.

    It is the part of :func:`recover` that disturbs no request. What dead processes left half done is ended,
    names whose files are back serve again, and names that never served are removed an hour after they
    failed. Revisions that no name has are left to :class:`UnreferencedRevisions`: a request may wait for
    them. Where files are missing is seen when they are read.

    Raises:
        StoreError: the disk or the database refused.
    """
    store.remove_leftovers()
    ended = _end_unfinished(registry, store)
    restored = registry.recovery.mark_restored(store.has)
    return (*ended, *restored, *registry.recovery.remove_failed(KEEP_FAILED_SECONDS))


def delete_unreferenced(registry: Registry, store: RevisionStore, digests: Iterable[str]) -> int:
    """Delete those of the revisions ``digests`` that no name refers to; the bytes of disk they took.

    Raises:
        StoreError: the disk or the database refused.
    """
    wanted = sorted(set(digests))
    return sum(store.discard(wanted, registry.revisions.referenced).values()) if wanted else 0


class UnreferencedRevisions:
    """Finds and deletes revisions that no name has and nobody frees, such as those of a killed publisher.

    One is deleted when two calls in a row have found it, so whoever calls decides by its pauses how long
    a revision stays that another server has just left without a name, and may still run requests with.
    """

    def __init__(self, registry: Registry, store: RevisionStore) -> None:
        self._registry = registry
        self._store = store
        self._before: frozenset[str] = frozenset()

    def delete(self, in_use: Collection[str]) -> dict[str, int]:
        """Delete what the last call found and is still unreferenced, except what is ``in_use`` here.

        Returns the bytes of disk of each revision that was deleted. Blocks.

        Raises:
            StoreError: the disk or the database refused.
        """
        found = set(self._store.digests()) - self._registry.revisions.referenced() - set(in_use)
        found -= kept_nameless(self._store)
        again = found & self._before
        self._before = frozenset(found - again)
        return self._store.discard(again, self._registry.revisions.referenced) if again else {}


def _end_unfinished(registry: Registry, store: RevisionStore) -> list[str]:
    """End what dead processes were loading or draining; the names."""
    dead = [record for record in registry.recovery.unfinished() if not store.alive(record.owner)]
    for record in dead:
        registry.recovery.end_unfinished(record.name, record.owner)
    return [record.name for record in dead]
