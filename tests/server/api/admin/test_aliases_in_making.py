"""What is made of adapters takes names as requests do: aliases with one target, and names to be looked up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.adapters import write_adapter
from tests.support.admin_client import error_of
from tests.support.running_server import Running, serving
from tests.support.served_adapters import service_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    """A server with aliases, that writes models and looks unknown names up in a directory."""
    storage, data = tmp_path_factory.mktemp("storage"), tmp_path_factory.mktemp("data")
    for number, name in enumerate(("to-merge", "to-export", "to-compose")):
        write_adapter(storage / name, model, seed=20 + number)
    options: dict[str, Any] = {"resolve": [f"file://{storage}/{{name}}"], "export_root": data / "models"}
    with serving(service_of(data, model, adapters, **options)) as running:
        with running.http() as http:
            for name, body in {
                "one": {"target": "alpha"},
                "mixed": {"target": "alpha*0.5+beta*0.5"},
                "base": {"target": "tiny"},
                "split": {"split": [{"target": "alpha", "share": 0.9}, {"target": "beta*0.5", "share": 0.1}]},
            }.items():
                assert http.put(f"/v1/aliases/{name}", json=body).status_code in {200, 201}
        yield running
        running.wait_until_idle()


def make(server: Running, what: str, name: str) -> httpx.Response:
    """Merge, export or compose the adapter called ``name``."""
    with server.http() as http:
        if what == "compose":
            members = [{"name": name}, {"name": "beta", "weight": 0.5}]
            return http.post("/v1/adapters/made/compose", params={"wait": "true"}, json={"members": members})
        return http.post(f"/v1/adapters/{name}/{what}", json={} if what == "merge" else {"verify": False})


def revision_of(server: Running, name: str) -> str:
    with server.http() as http:
        revision: str = http.get(f"/v1/adapters/{name}").json()["revision"]
    return f"{name}@{revision}"


def test_an_alias_is_merged_as_its_target(server: Running) -> None:
    made = make(server, "merge", "one")
    assert made.status_code == 200, made.text
    assert made.json()["of"] == revision_of(server, "alpha")
    with server.http() as http:
        assert http.get("/v1/adapters/one/merge").json()["of"] == made.json()["of"]
        answer = http.post("/v1/completions", json={"model": "one@merged", "prompt": "x", "max_tokens": 1})
        assert answer.json()["model"] == f"{made.json()['of']}.merged"
        assert http.delete("/v1/adapters/one/merge").json()["bytes_freed"] > 0


@pytest.mark.sweep
def test_an_alias_is_exported_as_its_target(server: Running) -> None:
    made = make(server, "export", "mixed")
    assert made.status_code == 200, made.text
    assert made.json()["of"] == f"{revision_of(server, 'alpha')}*0.5+{revision_of(server, 'beta')}*0.5"
    with server.http() as http:
        assert http.get("/v1/adapters/mixed/export").json() == made.json()


def test_an_alias_is_composed_as_its_target(server: Running) -> None:
    made = make(server, "compose", "mixed")
    assert made.status_code == 201, made.text
    revision = made.json()["revisions"][0]
    assert revision["source"] == "compose:linear:alpha*0.5+beta*0.5+beta*0.5"
    assert {m["name"]: m["weight"] for m in revision["lineage"]["members"]} == {"alpha": 0.5, "beta": 1.0}


@pytest.mark.parametrize("what", ["merge", "export", "compose"])
def test_names_are_looked_up(server: Running, what: str) -> None:
    made = make(server, what, f"to-{what}")
    assert made.status_code in {200, 201}, made.text
    missing = make(server, what, "nowhere")
    assert error_of(missing)[:2] == (404, "model_not_found")
    assert "nowhere" in missing.json()["error"]["message"]


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [
        ("merge", "split", "'split' splits its requests between alpha, beta*0.5"),
        ("export", "split", "'split' splits its requests between alpha, beta*0.5"),
        ("compose", "split", "'split' splits its requests between alpha, beta*0.5"),
        ("merge", "base", "that is the base model"),
        ("export", "base", "that is the base model"),
        ("merge", "one@merged", "names a merged copy already"),
        ("compose", "one@merged", "only adapters can be composed"),
    ],
)
def test_what_can_not_be_made(server: Running, what: str, name: str, message: str) -> None:
    answer = make(server, what, name)
    assert error_of(answer)[:2] == (400, "invalid_mix")
    assert message in answer.json()["error"]["message"]
