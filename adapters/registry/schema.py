"""The registry's tables, and connections to the database that holds them: SQLite or PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar
from urllib.parse import quote_plus

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    insert,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from manylora.adapters.disk import is_full
from manylora.adapters.errors import DiskFull, RegistryUnavailable, StoreError
from manylora.adapters.registry.sqlite_files import SqliteFiles, is_full_sqlite, sqlite_engine

VERSION = 1  # of the tables; a database written by a newer one is refused
WAIT_SECONDS = 30  # for another writer, before a mutation gives up
_ADVISORY_LOCK = 0x6D616E796C6F7261  # "manylora": who may create the tables in PostgreSQL
_READS = "manylora_reads"  # execution option: a transaction that only reads

# Tables that have got columns since their first version.
_GROWN = ("manylora_files", "manylora_batches", "manylora_names", "manylora_keys")

T = TypeVar("T")

# Names are ASCII; "C" makes PostgreSQL sort and compare them by bytes, as SQLite does.
_NAME = String(128).with_variant(String(128, collation="C"), "postgresql")
_DIGEST = String(64)

metadata = MetaData()

counter = Table(  # one row, which every mutation updates first: that puts mutations in one order
    "manylora_counter",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("store", String(64)),  # identity of the artifact directory this registry describes
)
changes = Table(  # the generation in which each name or alias last changed; removed ones stay
    "manylora_changes",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("generation", BigInteger, nullable=False, index=True),
)
revisions = Table(
    "manylora_revisions",
    metadata,
    Column("digest", _DIGEST, primary_key=True),
    Column("nbytes", BigInteger, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("modules", Integer, nullable=False),
    Column("total_modules", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("base_model_name", Text),
    Column("base_fingerprint", Text),
    Column("source", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("lineage", Text),  # JSON
    Column("details", Text, nullable=False),  # JSON
)
names = Table(
    "manylora_names",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("digest", _DIGEST, ForeignKey(revisions.c.digest)),
    Column("state", String(16), nullable=False, index=True),
    Column("error", Text),
    Column("pinned", Boolean, nullable=False),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Column("last_used", Double),
    Column("source", Text, nullable=False),
    Column("owner", String(64), nullable=False),
    Column("shared", Text),  # JSON: tenants, by name, that may use it besides whose it is; "*": all
    Column("shared_since", Text),  # JSON: {tenant: unix seconds}
)
tags = Table(
    "manylora_tags",
    metadata,
    Column("name", _NAME, ForeignKey(names.c.name, ondelete="CASCADE"), primary_key=True),
    Column("tag", String(64), primary_key=True, index=True),
)
history = Table(
    "manylora_history",
    metadata,
    Column("name", _NAME, ForeignKey(names.c.name, ondelete="CASCADE"), primary_key=True),
    Column("digest", _DIGEST, ForeignKey(revisions.c.digest), primary_key=True),
    Column("since", BigInteger, nullable=False),  # the generation in which it last became current
    Index("manylora_history_digest", "digest"),
)
aliases = Table(
    "manylora_aliases",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("arms", Text, nullable=False),  # JSON [[target, share], …]
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
)
arms = Table(  # what each arm of an alias has come to
    "manylora_arms",
    metadata,
    Column("alias", _NAME, ForeignKey(aliases.c.name, ondelete="CASCADE"), primary_key=True),
    Column("target", Text, primary_key=True),
    Column("since", Double, nullable=False),
    Column("counts", Text, nullable=False),  # JSON {what: number}
)

files = Table(  # what clients uploaded, and what batches came to
    "manylora_files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created", Double, nullable=False, index=True),
    Column("nbytes", BigInteger, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("expires", Double),
    Column("digest", _DIGEST, nullable=False),
    Column("owner", String(64), nullable=False),  # where its bytes lie: a data directory, or a shared storage
    Column("tenant", String(32)),  # whose it is; NULL: of who has no tenant
)
uploads = Table(  # files that come in parts
    "manylora_uploads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created", Double, nullable=False, index=True),
    Column("expires", Double, nullable=False),
    Column("nbytes", BigInteger, nullable=False),  # as announced
    Column("held", BigInteger, nullable=False),  # of the parts that came
    Column("status", String(16), nullable=False),
    Column("record", Text, nullable=False),  # JSON
    Column("tenant", String(32)),  # whose it is; NULL: of who has no tenant
)
upload_parts = Table(
    "manylora_upload_parts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("upload", String(64), ForeignKey(uploads.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("created", Double, nullable=False),
    Column("nbytes", BigInteger, nullable=False),
    Column("digest", _DIGEST, nullable=False),  # SHA-256 of its bytes
    Column("owner", String(64), nullable=False),  # where its bytes lie
)
batches = Table(
    "manylora_batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created", Double, nullable=False, index=True),
    Column("status", String(16), nullable=False),
    Column("input_file", String(64), nullable=False),
    Column("owner", String(64), nullable=False),  # the data directory of the server that works on it
    Column("record", Text, nullable=False),  # JSON
    Column("tenant", String(32)),  # whose it is; NULL: of who has no tenant
)
responses = Table(  # that clients go on from
    "manylora_responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created", Double, nullable=False, index=True),
    Column("expires", Double, nullable=False),
    Column("nbytes", BigInteger, nullable=False),  # of the document
    Column("document", LargeBinary, nullable=False),  # compressed JSON
)


class Database:
    """Connections to one registry. Thread-safe; faults become :class:`StoreError` in plain words."""

    def __init__(self, url: str) -> None:
        """Connect, creating the tables where they are missing.

        Raises:
            StoreError: the URL is not one of SQLite or PostgreSQL, or the database can't be used.
        """
        self._url = _parse(url)
        with self.faults(), ExitStack() as opened:
            self._files = SqliteFiles(self._url.database or "") if self._sqlite else None
            self._engine = _engine(self._url)
            opened.callback(self._engine.dispose)
            self._with_room(self._open)
            opened.pop_all()
        reading = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reader = self._engine.execution_options(**{_READS: True}, **({} if self._sqlite else reading))

    @property
    def _sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    def _open(self) -> None:
        with (
            self.faults(),
            nullcontext() if self._files is None else self._files.one_at_a_time(),
            self._engine.begin() as connection,
        ):
            _create(connection)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction whose statements all see the same moment."""
        with self.faults(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[tuple[Connection, int]]:
        """A transaction that no other mutation overlaps, and its generation."""
        with self.faults(), self._engine.begin() as connection:
            connection.execute(counter.update().values(generation=counter.c.generation + 1))
            yield connection, self.generation(connection)
        if self._files is not None:
            self._files.keep_reserve()

    def free(self, work: Callable[[Connection, int], T]) -> T:
        """Do ``work`` in a transaction like that of :meth:`write`, also where the disk is full.

        It is for what makes room, and for what says that something could not be done for want of it.
        """

        def attempt() -> T:
            with self.write() as (connection, generation):
                return work(connection, generation)

        return self._with_room(attempt)

    def _with_room(self, act: Callable[[], T]) -> T:
        """The result of ``act``, for which a database of ours makes room on a full disk."""
        if self._files is None:
            return act()
        for make_room in (lambda files: files.reuse_log(self._engine), SqliteFiles.give_reserve):
            try:
                return act()
            except DiskFull:
                make_room(self._files)
        return act()

    @contextmanager
    def write_quietly(self) -> Iterator[Connection]:
        """A transaction that no other mutation overlaps, for what is no news to other servers.

        The generation stays.
        """
        with self.faults(), self._engine.begin() as connection:
            connection.execute(select(counter.c.id).with_for_update())
            yield connection

    def generation(self, connection: Connection) -> int:
        """How many mutations the registry has seen."""
        return int(connection.execute(select(counter.c.generation)).scalar_one())

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Turn what the database raises into :class:`StoreError`, without credentials or SQL.

        What a database server raises becomes :class:`RegistryUnavailable`.
        """
        try:
            yield
        except (SQLAlchemyError, OSError, sqlite3.Error, ImportError) as error:
            kind: type[StoreError] = StoreError if self._sqlite else RegistryUnavailable
            if self._sqlite and (is_full(error) or is_full_sqlite(error)):
                kind = DiskFull
            raise kind(f"the adapter registry ({_describe(self._url)}): {self._reason(error)}") from None

    def close(self) -> None:
        """Close the idle connections to the database."""
        self._engine.dispose()

    def _reason(self, error: Exception) -> str:
        if isinstance(error, ImportError):
            return f"{error.name} is not installed (pip install 'manylora[postgres]')"
        cause = error.orig if isinstance(error, DBAPIError) else error
        # What PostgreSQL itself says, without the statement that it says it of.
        said = getattr(getattr(cause, "diag", None), "message_primary", None)
        sentence = " ".join(str(cause if said is None else said).split())
        for secret in _secrets(self._url):
            sentence = sentence.replace(secret, "***")
        return sentence[:300]


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # its message would quote the URL
        raise StoreError("the registry's URL can't be parsed: use sqlite:///PATH or postgresql://…") from None
    if parsed.drivername in {"postgresql", "postgres", "postgresql+psycopg"}:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"}:
        raise StoreError("the registry's URL must start with sqlite:/// or postgresql://")
    if parsed.database in {None, "", ":memory:"} or parsed.query:
        raise StoreError("the registry's URL must name a file: sqlite:///PATH, without parameters")
    return parsed.set(drivername="sqlite")


def _describe(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return f"SQLite, {url.database}"
    return f"PostgreSQL, database {url.database!r} on {url.host or 'the local socket'}"


def _secrets(url: URL) -> list[str]:
    """What no message may contain, as it may be written in one."""
    found = [] if url.password is None else [str(url.password)]
    for key, value in url.query.items():
        if "pass" in key.lower():
            found += [value] if isinstance(value, str) else value
    return [form for secret in found if secret for form in (secret, quote_plus(secret), repr(secret)[1:-1])]


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        return sqlite_engine(url, WAIT_SECONDS, reads=_READS)
    options: dict[str, Any] = {"connect_timeout": 10, "options": f"-c lock_timeout={WAIT_SECONDS}s"}
    own = {key: value for key, value in options.items() if key not in url.query}
    return create_engine(url, connect_args=own, pool_pre_ping=True)


def _create(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    metadata.create_all(connection)
    for name in _GROWN:
        _add_columns(connection, metadata.tables[name])
    version = connection.execute(select(counter.c.version)).scalar_one_or_none()
    if version is None:
        connection.execute(insert(counter).values(id=1, version=VERSION, generation=0))
    elif version > VERSION:
        raise StoreError(f"the adapter registry was written by a newer version ({version}) than this one")


def _add_columns(connection: Connection, table: Table) -> None:
    """Add the columns that a table lacks which an earlier version made; they may be NULL."""
    there = {column["name"] for column in inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in there:
            kind = column.type.compile(connection.dialect)
            connection.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))
