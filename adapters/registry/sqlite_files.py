"""A registry in SQLite: how its connections are made, and how it goes on being written on a full disk.

SQLite appends what a transaction changes to a log beside the database (``-wal``), so that even deleting
takes space. Where there is none, two things help. The log is copied into the database after every
transaction, and the next one writes over it from its beginning, in blocks that it has already. And a
*reserve*, a file that lies beside the database for no other purpose, is deleted, and made again when there is
room.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from manylora.adapters.file_locks import locked_directory

RESERVE_BYTES = 1 << 20  # what some 30 deletions append to the log
_SPARE = 4  # a reserve is made where so many times its bytes are free
# What SQLite says where it can't write a page, make its log's index longer, or finish a file.
_FULL = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMOPEN,
}


class SqliteFiles:
    """The files of one SQLite database, and the reserve beside them."""

    def __init__(self, database: str) -> None:
        """Make the directory that they lie in."""
        self._database = Path(database)
        self._reserve = Path(f"{database}-reserve")
        self._database.parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Hold a lock while files are created and switched to a log, for which SQLite does not wait."""
        # The directory, for SQLite's own locks on the file would be lost when a second descriptor closes.
        with locked_directory(self._database.parent):
            yield

    def keep_reserve(self) -> None:
        """Make the reserve where it is missing, if there is room for it."""
        with suppress(OSError):
            missing = not self._reserve.exists()
            if missing and shutil.disk_usage(self._database.parent).free >= _SPARE * RESERVE_BYTES:
                self._make_reserve()

    def _make_reserve(self) -> None:
        try:
            self._reserve.write_bytes(os.urandom(RESERVE_BYTES))  # which no file system makes smaller
        except OSError:
            self._reserve.unlink(missing_ok=True)
            raise

    def give_reserve(self) -> None:
        """Delete the reserve, for what makes room."""
        with suppress(OSError):
            self._reserve.unlink(missing_ok=True)

    @staticmethod
    def reuse_log(engine: Engine) -> None:
        """Copy all of the log into the database, so that it is written over from its beginning."""
        with suppress(sqlite3.Error, DBAPIError), closing(engine.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA wal_checkpoint(RESTART)").fetchall()


def is_full_sqlite(error: Exception) -> bool:
    """Whether SQLite had no space for what was to be written."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", None) in _FULL


def sqlite_engine(url: URL, wait_seconds: float, *, reads: str) -> Engine:
    """Connections to an SQLite database. Transactions with the execution option ``reads`` only read."""

    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later can fail at once when another one wrote in
        # between; one that says so from the start waits for its turn.
        only_reads = connection.get_execution_options().get(reads, False)
        connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")

    engine = create_engine(url, connect_args={"timeout": wait_seconds})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", begin)
    return engine


def _prepare(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own: see above
    # The log is copied into the database after every transaction, so that the next one finds room in it.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "wal_autocheckpoint = 1"):
        connection.execute(f"PRAGMA {pragma}").close()
