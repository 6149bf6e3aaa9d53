"""``manylora adapters recover``, in a data directory whose registry was lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from manylora.adapters.registry.cleanup import recover
from manylora.adapters.registry.registry import Registry
from manylora.adapters.store.store import RevisionStore
from manylora.server.cli.main import app
from tests.support.publishing import bring_in, write


def run(data: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["adapters", "recover", "--data-dir", str(data), *options])


def registry_url(data: Path) -> str:
    return f"sqlite:///{data}/registry.db"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a revision that was published as ``support``, and an empty registry."""
    data = tmp_path / "data"
    with RevisionStore(data / "adapters") as store, Registry(registry_url(data)) as registry:
        recover(registry, store)
        bring_in(registry, store, "support", write(tmp_path / "support"))
    for path in data.glob("registry.db*"):
        path.unlink()
    (data / "registry.db").touch()
    return data


def names(data: Path) -> list[str]:
    with Registry(registry_url(data)) as registry:
        return [record.name for record in registry.names.page()]


def test_recovering(data: Path) -> None:
    planned = run(data, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert planned.output.startswith("support@")
    assert planned.output.endswith("that would get one: 1\n")
    assert names(data) == []
    done = run(data)
    assert done.exit_code == 0, done.output
    assert done.output.endswith("that got one: 1\n")
    assert names(data) == ["support"]
    again = run(data)
    assert again.exit_code == 0
    assert again.output == "revisions without a name that got one: 0\n"


def test_refused_while_a_server_runs(data: Path) -> None:
    with RevisionStore(data / "adapters"):
        for options in ((), ("--dry-run",)):
            refused = run(data, *options)
            assert refused.exit_code == 1
            assert "stop it first" in refused.output
    assert names(data) == []


def test_what_is_no_data_directory(tmp_path: Path) -> None:
    refused = run(tmp_path)
    assert refused.exit_code == 2
    assert "there is no revision store" in refused.output
    assert not list(tmp_path.iterdir())
