"""Publishing a revision so that no kill, at any moment, leaves a name with half of one.

    announce   the registry says that the name is loading (a name that serves goes on serving)
    fetch      the files come to a temporary directory of this process
    validate   they are read and checked there, which also gives the digest
    prepare    what a revision keeps is synced to disk, the rest is dropped
    move in    one rename makes the directory the revision
    register   one transaction makes the name point to it

Whatever is left of a publication that was cut off is the temporary directory, an announced name, or a
revision that no name refers to. :mod:`manylora.adapters.registry.cleanup` removes all three.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from pathlib import Path

from manylora.adapters.disk import full_disk_told
from manylora.adapters.errors import AdapterDeleted, AdapterError, AdapterExists
from manylora.adapters.registry.cleanup import delete_unreferenced
from manylora.adapters.registry.publication_record import record_publication
from manylora.adapters.registry.records import NameRecord, RevisionRecord, State
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.store import RevisionStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedRevision:
    """A name as it is registered since its revision was published, and where the revision lies."""

    name: NameRecord
    directory: Path
    is_new: bool  # the name had no revision before


def publish_revision(
    registry: Registry,
    store: RevisionStore,
    name: str,
    *,
    fetch: Callable[[Path], str | None],  # returns the exact source, where it knows it better than ``source``
    validate: Callable[[Path], RevisionRecord],
    source: str,
    tags: Collection[str] | None = None,
    replace: bool = True,
    join: bool = False,
    delete_old: bool = True,
    announced: NameRecord | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> PublishedRevision:
    """Bring in a revision and make ``name`` point to it. Blocks; call it from a worker thread.

    ``fetch`` fills an empty directory with regular files; ``validate`` reads them and says what they
    are. ``on_step`` is called after each step with its name: announce, fetch, validate, prepare, move in,
    register. ``announced`` is what the registry said if the name was announced before this is called. Without
    ``replace`` the name must not serve yet; with ``join`` it may have come to serve the same content.
    Revisions that drop out of the name's history are deleted, unless ``delete_old`` is false:
    a server waits until no request runs with them. A fault is recorded with the name, and raised.

    Raises:
        AdapterNameError, AdapterExists: before anything is fetched, or when another was faster.
        AdapterDeleted: the name was deleted after it was announced.
        StoreError: the disk or the database refused.
        AdapterError: what ``fetch`` and ``validate`` raise.
    """
    before = registry.names.announce(name, source, tags or (), announced=announced)
    moved_in: list[str] = []
    try:
        on_step("announce")
        if not (replace or join) and before.state is State.READY:
            raise AdapterExists(f"the name {name!r} is taken; unload it first or ask to replace it")
        with store.temporary() as temporary:
            with full_disk_told("there is no room for the adapter"):
                exact = fetch(temporary)
                on_step("fetch")
                revision = validate(temporary)
            on_step("validate")
            if exact is not None:
                revision = dataclass_replace(revision, source=exact)
            store.prepare(temporary)
            on_step("prepare")
            with store.deletion_blocked():
                directory = store.move_in(temporary, revision.digest)
                moved_in.append(revision.digest)
                on_step("move in")
                record = registry.names.set_revision(
                    name, revision, replace=replace, source=source, tags=tags, announced=before
                )
            _record(registry, store, revision, record)
            on_step("register")
    except (AdapterExists, AdapterDeleted):  # what is there, if anything, says nothing of this attempt
        delete_unreferenced(registry, store, moved_in)
        raise
    except BaseException as error:
        with suppress(AdapterError):  # the first fault is the one to tell
            message = str(error) if isinstance(error, AdapterError) else "an unexpected fault"
            registry.names.fail(name, message)
        raise
    if delete_old:
        delete_unreferenced(registry, store, set(before.history) - set(record.history))
    return PublishedRevision(record, directory, before.digest is None)


def _record(registry: Registry, store: RevisionStore, revision: RevisionRecord, name: NameRecord) -> None:
    """Record beside the revision what it is and is called; that this can't be done is no fault of it."""
    try:
        record_publication(store, revision, name, registry.generation)
    except AdapterError as error:
        logger.warning("what revision %s is called is not recorded: %s", revision.digest[:8], error)
