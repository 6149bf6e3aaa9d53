"""Each test of the registry runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from manylora.adapters.registry.registry import Registry
from tests.support.postgres import binaries, running


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server, without a database."""
    found = binaries()
    if found is None:
        pytest.skip("PostgreSQL is not installed: no initdb on PATH or under /usr/lib/postgresql")
    with running(found) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty registry."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/data/registry.sqlite3"
    server: str = request.getfixturevalue("postgres")
    database = f"t{abs(hash(str(tmp_path))):x}"
    engine = create_engine(
        server.replace("postgresql", "postgresql+psycopg") + "/postgres", isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        # A locale that sorts otherwise than by bytes, as most servers in the field have.
        newer = int(connection.execute(text("SHOW server_version_num")).scalar_one()) >= 150000
        locale = "LOCALE_PROVIDER icu ICU_LOCALE 'en-US' TEMPLATE template0" if newer else ""
        connection.execute(text(f'CREATE DATABASE "{database}" {locale}'))
    engine.dispose()
    return f"{server}/{database}"


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    with Registry(url, owner="me") as opened:
        yield opened
