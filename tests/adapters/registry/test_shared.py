"""Several threads, several processes, and databases that refuse."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from manylora.adapters.errors import AdapterExists, RegistryUnavailable, StoreError
from manylora.adapters.registry.records import State
from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.schema import Database
from tests.support.paths import ROOT
from tests.support.revision_records import digest, revision

PUBLISHER = """
import sys
from manylora.adapters.registry.registry import Registry
from manylora.adapters.registry.schema import Database
from tests.support.revision_records import revision
registry = Registry(sys.argv[1], owner=sys.argv[2])
print("open", flush=True)
sys.stdin.readline()
for number in range(25):
    own = f"own-{sys.argv[2]}-{number}"
    registry.names.announce(own, "x")
    registry.names.set_revision(own, revision(f"{number}"), replace=False, source="x")
    registry.names.set_revision("shared", revision(f"{sys.argv[2]}-{number}"), replace=True, source="x")
registry.close()
"""


def start(url: str, who: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PUBLISHER, url, who],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )


@pytest.mark.slow
def test_two_processes_create_and_fill_one_registry(url: str) -> None:
    processes = [start(url, who) for who in "pq"]
    for process in processes:  # both were creating the tables at once
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
    with Registry(url) as registry:
        seen, at = set(), 0
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        while any(process.poll() is None for process in processes):
            at, changed = registry.changes(at)
            seen.update(changed)
        at, changed = registry.changes(at)
        seen.update(changed)
        assert [process.wait() for process in processes] == [0, 0]
        names = {f"own-{who}-{number}" for who in "pq" for number in range(25)} | {"shared"}
        assert seen == names == {record.name for record in registry.names.page()}
        assert at == 3 * 50, "each mutation has its own generation"
        shared = registry.names.get("shared")
        assert shared.digest in {digest("p-24"), digest("q-24")}
        assert shared.history[0] == shared.digest
        referenced = registry.revisions.referenced()
        assert set(registry.revisions.find(referenced)) == referenced
    for process in processes:
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def test_threads_race_for_one_name(registry: Registry) -> None:
    def publish(number: int) -> bool:
        with suppress(AdapterExists):
            registry.names.set_revision("a", revision(str(number)), replace=False, source="x")
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(publish, range(32)))
    assert sum(won) == 1
    assert registry.names.get("a").digest == digest(str(won.index(True)))
    assert registry.revisions.referenced() == {digest(str(won.index(True)))}


@pytest.mark.slow
def test_threads_do_everything_at_once(registry: Registry) -> None:
    registry.names.set_revision("a", revision("start"), replace=True, source="x")

    def work(number: int) -> None:
        registry.names.set_revision("a", revision(str(number)), replace=True, source="x", tags=[f"t{number}"])
        registry.names.touch({"a": float(number), "b": 1.0})
        registry.names.announce("b", "x")
        registry.names.fail("b", str(number))
        record = registry.names.get("a")
        assert record.digest == record.history[0], "a reader never sees half a publication"
        assert len(record.tags) == 1
        registry.names.page()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    assert registry.names.get("b").state is State.FAILED
    assert registry.names.get("a").last_used == 39.0
    assert registry.changes(0)[0] == 121


def test_an_opened_registry_is_found_again(url: str) -> None:
    with Registry(url) as registry:
        registry.names.set_revision("a", revision(), replace=False, source="x")
    with Registry(url) as registry:
        assert registry.names.get("a").digest == digest("one")


def test_a_newer_registry_is_refused(url: str) -> None:
    with closing(Database(url)) as database, database.write() as (connection, _):
        connection.exec_driver_sql("UPDATE manylora_counter SET version = 99")
    with pytest.raises(StoreError, match="newer version"):
        Registry(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "secret",
        "mysql://me:secret@host/db",
        "postgresql+asyncpg://me:secret@host/db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:////tmp/x?secret=1",
        "postgresql://me:secret@host:port/db",
        "postgresql://me:secret@127.0.0.1:1/db?password=secret",
        "postgresql://me:secret@127.0.0.1:1/db?nonsense=1",
        "sqlite:////proc/none/registry.sqlite3",
        "sqlite:////tmp",
    ],
)
def test_urls_that_do_not_work(url: str) -> None:
    with pytest.raises(StoreError) as error:
        Registry(url)
    assert "secret" not in str(error.value)
    assert error.value.__context__ is None or error.value.__suppress_context__
    assert len(str(error.value)) < 500


@pytest.mark.slow
def test_a_wrong_database_and_password(postgres: str) -> None:
    with pytest.raises(RegistryUnavailable, match="does not exist") as error:
        Registry(f"{postgres}/nowhere")
    assert "hush" not in str(error.value)


@pytest.mark.slow
def test_a_user_who_may_not_make_tables(postgres: str) -> None:
    """The reason is told without the statement."""
    engine = create_engine(f"{postgres.replace('postgresql', 'postgresql+psycopg')}/postgres")
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE reader LOGIN"))
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
    engine.dispose()
    with pytest.raises(RegistryUnavailable) as error:
        Registry(f"{postgres.replace('tester', 'reader')}/postgres")
    assert str(error.value).endswith("permission denied for schema public")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "registry.sqlite3"
    path.write_bytes(b"something else " * 100)
    with pytest.raises(StoreError, match="not a database") as error:
        Registry(f"sqlite:///{path}")
    assert not isinstance(error.value, RegistryUnavailable)  # no server whose return one could wait for
    assert path.read_bytes() == b"something else " * 100
