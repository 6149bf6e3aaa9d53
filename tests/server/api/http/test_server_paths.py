"""No answer below the admin scope names a file or a directory of the server, whatever goes wrong there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from manylora.adapters.errors import RegistryUnavailable, StoreError
from manylora.server.api.app import create_app
from tests.support.adapters import write_adapter
from tests.support.running_server import Running, serving, tiny_service
from tests.support.spelled_targets import requests_of

pytestmark = pytest.mark.slow

ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/classify": {"input": "Hi"},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [1, 2]},
}


@dataclass(frozen=True)
class Place:
    """A server, and the directories that only admins may know."""

    running: Running
    storage: Path
    hidden: tuple[str, ...]

    def ask(self, key: str | None, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer to a request with ``key``; for any but the admin's it may name no directory."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        with self.running.http(headers=headers) as http:
            answer = http.request(method, path, **options)
        if key != "admin":
            told = answer.text + repr(answer.headers)
            assert not [place for place in self.hidden if place in told], (method, path, told)
        return answer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("hidden")
    storage = root / "storage"
    named = {name: write_adapter(storage / name, model, seed=n) for n, name in enumerate(("a", "b", "c"))}
    write_adapter(storage / "broken", model)
    (storage / "broken" / "adapter_model.safetensors").write_bytes(b"nothing")
    shutil.copytree(model, root / "model")
    service = tiny_service(
        root / "model",
        root / "data",
        adapter=named,
        adapter_root=[storage],
        export_root=root / "exports",
        resolve=[f"file://{storage}/{{name}}"],
        api_key=["user"],
        admin_api_key=["admin"],
        adapter_cache_memory=0,
    )
    with serving(service) as running:
        yield Place(running, storage, (str(root), root.name, "/site-packages"))


def lose(place: Place, name: str) -> None:
    """Take an adapter off the device, and its files away."""
    digest = place.running.service.adapters.views.get(name).digest
    assert place.ask("admin", "POST", f"/v1/adapters/{name}/evict").status_code == 200
    for file in place.running.service.store.path(digest).iterdir():
        file.write_bytes(b"nothing") if name == "a" else file.unlink()


@pytest.mark.parametrize("key", [None, "user"])
def test_every_route(place: Place, key: str | None) -> None:
    for method, path, _ in requests_of(create_app(place.running.service)):
        body: dict[str, Any] | None = {} if method in {"POST", "PUT"} else None
        for target in (path, path.replace("nothing", "a")):
            place.ask(key, method, target, json=body)


def test_what_can_be_asked_for(place: Place) -> None:
    shown = {card["id"]: card["root"] for card in place.ask("user", "GET", "/v1/models").json()["data"]}
    known = {card["id"]: card["root"] for card in place.ask("admin", "GET", "/v1/models").json()["data"]}
    assert shown == {name: name for name in ("tiny", "a", "b", "c")}
    assert known["tiny"].endswith("/model")
    assert known["c"] == str(place.storage / "c")
    for name in shown:
        assert place.ask("user", "GET", f"/v1/models/{name}").json()["root"] == name
        assert place.ask("admin", "GET", f"/v1/models/{name}").json()["root"] == known[name]


def test_why_kernels_were_chosen_is_for_admins(place: Place) -> None:
    assert "kernels_note" not in place.ask("user", "GET", "/version").json()
    assert "kernels_note" in place.ask("admin", "GET", "/version").json()


def ask_all(place: Place, key: str, name: str) -> list[str]:
    """The messages of all routes that are asked for an adapter by name; streams too."""
    told = []
    for path, body in ASKED.items():
        for more in ({}, {"stream": True}) if "completions" in path else ({},):
            answer = place.ask(key, "POST", path, json={"model": name, **body, **more})
            if not answer.is_success:
                told.append(answer.json()["error"]["message"])
    both = {"targets": ["tiny", name], "messages": ASKED["/v1/chat/completions"]["messages"], "max_tokens": 2}
    answer = place.ask(key, "POST", "/v1/compare", json=both)
    if not answer.is_success:
        told.append(answer.json()["error"]["message"])
    return told


@pytest.mark.parametrize("name", ["a", "b"])
def test_adapters_that_can_not_be_loaded(place: Place, name: str) -> None:
    """Their files are damaged, or gone; later requests find the name failed."""
    lose(place, name)
    told = ask_all(place, "user", name) + ask_all(place, "user", f"{name}+c")
    assert any("can't be loaded" in message for message in told), told
    place.ask("user", "GET", f"/v1/models/{name}")


def test_an_adapter_that_is_looked_up_and_broken(place: Place) -> None:
    assert ask_all(place, "user", "broken")
    admin = place.ask("admin", "POST", "/v1/completions", json={"model": "broken", "prompt": "x"})
    assert "adapter_model.safetensors" in admin.json()["error"]["message"]


@pytest.mark.parametrize("kind", [StoreError, RegistryUnavailable, OSError])
def test_a_store_that_fails(place: Place, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind(f"{place.storage}: No space left on device")

    monkeypatch.setattr(place.running.service.adapters.resolver, "knows", fail)
    asked = {"model": "c", "prompt": "x", "max_tokens": 1}
    answer = place.ask("user", "POST", "/v1/completions", json=asked)
    assert answer.status_code in {500, 503, 507}
    admin = place.ask("admin", "POST", "/v1/completions", json=asked)
    assert (str(place.storage) in admin.text) == (kind is not OSError)
