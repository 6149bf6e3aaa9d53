"""Dynamo's routes, and what may stand where a path is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.adapters import write_adapter
from tests.support.fake_hub import Repository, running_hub
from tests.support.running_server import Running, serving, tiny_service

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    root = tmp_path_factory.mktemp("roots")
    write_adapter(root / "one", model, seed=1)
    write_adapter(root / "two", model, seed=2)
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path, root: Path) -> Iterator[Running]:
    """A server that may read a directory and one organization of a Hub."""
    files = {path.name: path.read_bytes() for path in (root / "two").iterdir()}
    with running_hub(lora=Repository(files)) as hub:
        service = tiny_service(
            model, tmp_path_factory.mktemp("data"), adapter_root=[root], adapter_repository=["org/*"]
        )
        service.sources = replace(service.sources, hub_endpoint=hub.endpoint)
        with serving(service) as running:
            yield running


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client
        for adapter in server.service.adapters.views.serving():
            assert client.delete(f"/v1/loras/{adapter.name}").status_code == 200


def test_load_list_use_unload(http: httpx.Client, root: Path) -> None:
    body = {"lora_name": "my-adapter", "source": {"uri": f"file://{root / 'one'}"}}
    for _ in range(2):  # again is no fault
        told = http.post("/v1/loras", json=body)
        assert told.status_code == 200
        assert told.json()["status"] == "success"
        assert told.json()["lora_name"] == "my-adapter"
    listed = http.get("/v1/loras").json()
    assert listed["loras"] == {"my-adapter": told.json()["lora_id"]}
    assert listed["count"] == 1
    asked = {"model": "my-adapter", "prompt": "Hello", "max_tokens": 2}
    assert http.post("/v1/completions", json=asked).status_code == 200
    assert http.delete("/v1/loras/my-adapter").json()["lora_name"] == "my-adapter"
    assert http.post("/v1/completions", json=asked).status_code == 404
    assert http.delete("/v1/loras/my-adapter").status_code == 404


def test_names_with_slashes(http: httpx.Client) -> None:
    name = "publishers/acme/models/support"
    body = {"lora_name": name, "lora_path": "one"}
    assert http.post("/v1/load_lora_adapter", json=body).status_code == 200
    card = http.get(f"/v1/models/{name}").json()
    assert card["id"] == name
    assert card["parent"] == "tiny"
    assert http.delete(f"/v1/loras/{name}").status_code == 200


def test_a_repository_of_the_hub(http: httpx.Client) -> None:
    for number, path in enumerate(("org/lora", "hf://org/lora")):
        told = http.post("/v1/load_lora_adapter", json={"lora_name": f"hub-{number}", "lora_path": path})
        assert told.status_code == 200, told.text
        assert http.get(f"/v1/adapters/hub-{number}").json()["source"].startswith("hf://org/lora@")
    body: dict[str, Any] = {"lora_name": "hub-2", "source": {"uri": "hf://org/lora"}}
    assert http.post("/v1/loras", json=body).status_code == 200


def test_a_directory_goes_before_a_repository_of_that_name(
    http: httpx.Client, root: Path, model: Path
) -> None:
    if not (root / "org" / "lora").exists():
        write_adapter(root / "org" / "lora", model, seed=7)
    assert (
        http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "org/lora"}).status_code
        == 200
    )
    assert not http.get("/v1/adapters/x").json()["source"].startswith("hf://")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("other/lora", "source_forbidden"),
        ("hf://other/lora", "source_forbidden"),
        ("s3://bucket/x", "source_forbidden"),
        ("http://169.254.169.254/latest", "source_forbidden"),
        ("file:///etc/passwd", "source_forbidden"),
        ("hf://org/none", "artifact_missing"),
        ("hf://org", "artifact_missing"),
        ("missing", "artifact_missing"),
        ("memory::file:///etc", "artifact_missing"),
    ],
)
def test_what_may_not_be_read_leaves_no_trace(http: httpx.Client, path: str, code: str) -> None:
    for route, body, param in (
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": path}, "lora_path"),
        ("/v1/loras", {"lora_name": "x", "source": {"uri": path}}, "source.uri"),
    ):
        told = http.post(route, json=body)
        assert told.json()["error"]["code"] == code, told.text
        assert told.json()["error"]["param"] == param
        assert told.status_code in {403, 422}
    assert http.get("/v1/adapters/x").status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"lora_name": "a"}, "source"),
        ({"source": {"uri": "one"}}, "lora_name"),
        ({"lora_name": "a", "source": "one"}, "source"),
        ({"lora_name": "a", "source": {"uri": ""}}, "source.uri"),
        ({"lora_name": "a", "source": {"uri": "one", "key": "x"}}, "source.key"),
        ({"lora_name": "a+b", "source": {"uri": "one"}}, "lora_name"),
        ({"lora_name": "../a", "source": {"uri": "one"}}, "lora_name"),
        ({"lora_name": "a", "source": {"uri": "one"}, "colour": 1}, "colour"),
    ],
)
def test_bad_bodies(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    told = http.post("/v1/loras", json=body)
    assert told.status_code == 400
    assert told.json()["error"]["param"] == param
