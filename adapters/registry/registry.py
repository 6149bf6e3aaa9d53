"""The registry: which names exist, which revision each points to, and what became of loading them.

It lives in SQLite or PostgreSQL and may be shared by several servers. Every mutation is one
transaction and has a place in one order, its *generation*, so that a server can ask what changed
since it last looked. The revisions' files are in a :class:`~manylora.adapters.store.store.RevisionStore`.

All methods block on the database; call them from a worker thread. Any of them may raise StoreError.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from sqlalchemy import Connection, select

from manylora.adapters.errors import StoreError
from manylora.adapters.registry.aliases import Aliases
from manylora.adapters.registry.arms import Arms
from manylora.adapters.registry.batches import Batches
from manylora.adapters.registry.files import Files
from manylora.adapters.registry.names import Names
from manylora.adapters.registry.recovery import Recovery
from manylora.adapters.registry.responses import Responses
from manylora.adapters.registry.revisions import Revisions
from manylora.adapters.registry.schema import Database, changes, counter
from manylora.adapters.registry.shares import Shares
from manylora.adapters.registry.tenants.audit import Audit
from manylora.adapters.registry.tenants.taken import Taken
from manylora.adapters.registry.tenants.tenants import Tenants
from manylora.adapters.registry.tenants.usage import Usage
from manylora.adapters.registry.tuning.events import TuningEvents
from manylora.adapters.registry.tuning.jobs import TuningJobs
from manylora.adapters.registry.tuning.leases import TuningLeases
from manylora.adapters.registry.uploads import Uploads

HISTORY = 16  # revisions of a name that stay, to roll back to


class Registry:
    """Names, revisions and aliases in a database. Thread-safe, and shared by processes."""

    def __init__(self, url: str, *, owner: str = "", directory: str = "", history: int = HISTORY) -> None:
        """Open the registry at ``url`` (sqlite:///PATH or postgresql://…), creating it where it is new.

        ``owner`` names this process; what it is loading or draining is known by that. ``directory`` names the
        data directory, whose processes share clients' files. ``history`` is how many revisions of a name
        stay, the current one included.

        Raises:
            StoreError: the URL or the database can't be used.
        """
        database = self._database = Database(url)
        self.names = Names(database, owner=owner, history=history)
        self.shares = Shares(database)
        self.revisions = Revisions(database)
        self.aliases = Aliases(database)
        self.arms = Arms(database)
        self.recovery = Recovery(database)
        self.files = Files(database, owner=directory)
        self.uploads = Uploads(database)
        self.batches = Batches(database, owner=directory)
        self.responses = Responses(database)
        self.tenants = Tenants(database)
        self.usage = Usage(database)
        self.taken = Taken(database)
        self.audit = Audit(database)
        self.tuning = TuningJobs(database)
        self.tuning_events = TuningEvents(database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections to the database."""
        self._database.close()

    @property
    def generation(self) -> int:
        """How many mutations the registry has seen; 0 is that of one that was never used."""
        with self._database.read() as connection:
            return self._database.generation(connection)

    def changes(self, since: int) -> tuple[int, list[str]]:
        """The registry's generation, and the names and aliases that changed after generation ``since``.

        Removed ones are among them. Pins and everything else count, but not when a name was last used, nor
        the counts of arms.
        """
        with self._database.read() as connection:
            generation = self._database.generation(connection)
            if generation <= since:
                return generation, []
            later = select(changes.c.name).where(changes.c.generation > since).order_by(changes.c.name)
            return generation, list(connection.execute(later).scalars())

    def tuning_leases(self, worker: str) -> TuningLeases:
        """The leases of fine-tuning jobs that the worker of that id has."""
        return TuningLeases(self._database, worker)

    def set_store(self, identity: str) -> None:
        """Record, in a new registry, that its revisions lie in the artifact directory called ``identity``.

        Raises:
            StoreError: they lie in another one.
        """
        with self._database.write_quietly() as connection:
            if _store(connection, identity) is None:
                connection.execute(counter.update().values(store=identity))

    def check_store(self, identity: str) -> None:
        """Raise :class:`StoreError` where :meth:`set_store` would; nothing is written."""
        with self._database.read() as connection:
            _store(connection, identity)


def _store(connection: Connection, identity: str) -> str | None:
    """The artifact directory that is recorded, if one is.

    Raises:
        StoreError: it is another one than ``identity``.
    """
    known: str | None = connection.execute(select(counter.c.store)).scalar_one()
    if known not in {None, identity}:
        raise StoreError(
            "the adapter registry belongs to another artifact directory: servers that share a "
            "registry must share that directory, and a new directory needs a new registry"
        )
    return known
