"""The registry as this process last saw it: what names and aliases mean, without asking a database.

Requests are resolved from here. The registry is read at start, after every change made through this
server, and a few times a second for what other servers changed. One thread makes all calls to the
registry, so what is copied from it is copied in the order in which it was read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from manylora.adapters.errors import AdapterNotFound
from manylora.adapters.registry.records import AliasRecord, NameRecord, RevisionRecord, State
from manylora.adapters.registry.registry import Registry

logger = logging.getLogger(__name__)

T = TypeVar("T")
# Called with the names that are different, and the revisions that no name has any more.
Listener = Callable[[Collection[str], Collection[str]], None]

_WHY_NOT = {
    State.LOADING: "is still being loaded",
    State.DRAINING: "is being deleted",
    State.FAILED: "could not be loaded",
}
_PAGE = 1000  # names read at a time


@dataclass(frozen=True)
class _Snapshot:
    """What one look into the registry found."""

    generation: int
    asked: tuple[str, ...]
    names: dict[str, NameRecord]
    aliases: dict[str, AliasRecord]
    revisions: dict[str, RevisionRecord]  # the current ones of ``names``


class RegistryMirror:
    """Names, aliases and facts of current revisions. Read and changed on the event loop only."""

    def __init__(self, registry: Registry) -> None:
        """Nothing is read until :meth:`read_all`."""
        self.names: dict[str, NameRecord] = {}
        self.aliases: dict[str, AliasRecord] = {}
        self.changes = 0  # of names, so far
        self._registry = registry
        self._listeners: list[Listener] = []
        self._refused: set[str] = set()  # names that are being deleted, which the registry does not show yet
        self.used: dict[str, float] = {}  # unix seconds, of names that requests used since the start
        self._facts: dict[str, RevisionRecord] = {}
        self._named: dict[str, set[str]] = {}  # digest -> the names whose history has it
        self._generation = 0
        self._thread = ThreadPoolExecutor(1, "registry")

    def subscribe(self, listener: Listener) -> None:
        """Have ``listener(names, digests)`` called for every change from now on."""
        self._listeners.append(listener)

    def touch(self, name: str) -> None:
        """A request uses ``name`` now."""
        self.used[name] = time.time()

    @contextmanager
    def refusing(self, name: str) -> Iterator[None]:
        """Within the block ``name`` does not serve, whatever the registry says."""
        self._refused.add(name)
        try:
            yield
        finally:
            self._refused.discard(name)

    async def run(self, work: Callable[[Registry], T]) -> T:
        """Call the registry in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._registry)

    async def change(self, name: str, work: Callable[[Registry], T]) -> T:
        """Change ``name`` (or the alias of that name) by ``work`` and see what it is afterwards."""
        generation = self._generation

        def both(registry: Registry) -> tuple[T, _Snapshot]:
            result = work(registry)
            return result, _look(registry, [name], generation)

        result, snapshot = await self.run(both)
        self._apply(snapshot)
        return result

    async def read_all(self) -> None:
        """Read everything there is."""
        self._apply(await self.run(_look_at_all))

    async def refresh(self, name: str) -> None:
        """Look whether another server has changed ``name``."""
        generation = self._generation
        self._apply(await self.run(lambda registry: _look(registry, [name], generation)))

    async def follow(self) -> None:
        """Take over what has changed since the registry was last followed."""
        generation = self._generation

        def look(registry: Registry) -> _Snapshot:
            now, names = registry.changes(generation)
            return _look(registry, names, now)

        self._apply(await self.run(look))

    def get(self, name: str) -> NameRecord:
        """The record of ``name``.

        Raises:
            AdapterNotFound: no such name.
        """
        try:
            return self.names[name]
        except KeyError:
            if name in self.aliases:
                raise AdapterNotFound(f"{name!r} is an alias, not an adapter") from None
            raise AdapterNotFound(f"no adapter is registered under the name {name[:140]!r}") from None

    def get_ready(self, name: str) -> NameRecord:
        """The record of ``name``, which serves.

        Raises:
            AdapterNotFound: no such name, or it does not serve; says why.
        """
        if name in self._refused:
            raise AdapterNotFound(f"the adapter {name!r} is being deleted")
        record = self.get(name)
        if record.state is not State.READY or record.digest is None:
            reason = f": {record.error}" if record.state is State.FAILED and record.error else ""
            why = _WHY_NOT.get(record.state, "has no revision")
            raise AdapterNotFound(f"the adapter {name!r} {why}{reason}", public=f"the adapter {name!r} {why}")
        return record

    @property
    def num_ready(self) -> int:
        """Names that serve. It may be asked for in any thread: the names are copied in one step."""
        return sum(record.state is State.READY for record in list(self.names.values()))

    def facts(self, digest: str | None) -> RevisionRecord | None:
        """What is known of a revision; always there for the current one of a name that has one."""
        return None if digest is None else self._facts.get(digest)

    async def all_facts(self, digests: Iterable[str]) -> list[RevisionRecord]:
        """What is known of revisions that some name's history has, in the order given."""
        wanted = tuple(digests)
        found = await self.run(lambda registry: registry.revisions.find(wanted))
        return [found[digest] for digest in wanted if digest in found]

    def is_named(self, digest: str) -> bool:
        """Whether some name points to the revision, or did and can be rolled back to it."""
        return digest in self._named

    def names_with(self, digest: str) -> frozenset[str]:
        """The names whose history has the revision."""
        return frozenset(self._named.get(digest, ()))

    async def close(self) -> None:
        """Let the last call end, and the thread with it."""
        await self.run(lambda _: None)
        self._thread.shutdown()

    def _apply(self, snapshot: _Snapshot) -> None:
        self._generation = max(self._generation, snapshot.generation)
        self._facts.update(snapshot.revisions)
        changed = [name for name in snapshot.asked if snapshot.names.get(name) != self.names.get(name)]
        orphans: set[str] = set()
        for name in changed:
            orphans |= self._put(name, snapshot.names.get(name))
        for name in snapshot.asked:
            self._put_alias(name, snapshot.aliases.get(name))
        gone = [digest for digest in orphans if digest not in self._named]
        for digest in gone:
            self._facts.pop(digest, None)
        if changed:
            self.changes += 1
            for listener in self._listeners:
                listener(changed, gone)

    def _put(self, name: str, record: NameRecord | None) -> set[str]:
        """Replace what is known of ``name``; returns the digests that it no longer has."""
        before = self.names.get(name)
        old, new = set(before.history if before else ()), set(record.history if record else ())
        for digest in old - new:
            self._named[digest].discard(name)
            if not self._named[digest]:
                del self._named[digest]
        for digest in new - old:
            self._named.setdefault(digest, set()).add(name)
        if record is None:
            self.names.pop(name, None)
        else:
            self.names[name] = record
        return old - new

    def _put_alias(self, name: str, record: AliasRecord | None) -> None:
        if record is None:
            self.aliases.pop(name, None)
        else:
            self.aliases[name] = record


def _look(registry: Registry, names: Iterable[str], generation: int) -> _Snapshot:
    asked = tuple(names)
    found, aliases = {}, {}
    for name in asked:
        try:
            found[name] = registry.names.get(name)
        except AdapterNotFound:
            try:
                aliases[name] = registry.aliases.get(name)
            except AdapterNotFound:
                continue
    return _Snapshot(generation, asked, found, aliases, _facts_of(registry, found.values()))


def _look_at_all(registry: Registry) -> _Snapshot:
    generation, _ = registry.changes(0)
    found: dict[str, NameRecord] = {}
    after = ""
    while page := registry.names.page(after=after, limit=_PAGE):
        found.update((record.name, record) for record in page)
        after = page[-1].name
    aliases = {alias.name: alias for alias in registry.aliases.all()}
    facts = _facts_of(registry, found.values())
    return _Snapshot(generation, (*found, *aliases), found, aliases, facts)


def _facts_of(registry: Registry, records: Iterable[NameRecord]) -> dict[str, RevisionRecord]:
    return registry.revisions.find(sorted({r.digest for r in records if r.digest is not None}))
