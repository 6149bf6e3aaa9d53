"""``GET /v1/access``: what a key may do, told to the key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.running_server import Running, serving, tiny_service
from tests.support.tenants import ADMIN, bearer, new_key, tenant_key


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, console_model: Path) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("data")
    with serving(tiny_service(console_model, data, admin_api_key=[ADMIN], api_key=["user"])) as running:
        yield running


def ask(server: Running, key: str | None) -> dict[str, Any]:
    with server.http() as http:
        answer = http.get("/v1/access", headers={} if key is None else bearer(key))
    assert answer.status_code == 200
    told: dict[str, Any] = answer.json()
    return told


def test_without_keys_everybody_may_do_everything(open_server: Running) -> None:
    told = ask(open_server, None)
    assert told["may"] == ["infer", "manage", "admin"]
    assert told["tenant"] is None
    training = open_server.service.tuning.mode != "off"
    assert told["features"] == {"keys": False, "training": training, "tenants": False, "exports": False}
    assert ask(open_server, "any") == told


def test_keys_of_the_server(server: Running) -> None:
    nothing: dict[str, Any] = {"object": "access", "may": [], "tenant": None}
    assert ask(server, None) == ask(server, "wrong") == ask(server, ADMIN + "x") == nothing
    assert ask(server, "user")["may"] == ["infer"]
    assert ask(server, ADMIN)["may"] == ["infer", "manage", "admin"]
    assert ask(server, "user")["features"]["keys"] is True


def test_keys_of_tenants(server: Running) -> None:
    with server.http() as http:
        infer = tenant_key(http, "acme")
        manage = new_key(http, "acme", scopes=["manage"])["key"]
        both = new_key(http, "acme", scopes=["infer", "manage"])["key"]
        everything = new_key(http, "acme", scopes=["admin"])["key"]
    told = ask(server, infer)
    assert (told["may"], told["tenant"], told["features"]["tenants"]) == (["infer"], "acme", True)
    assert ask(server, manage)["may"] == ["manage"]
    assert ask(server, both)["may"] == ["infer", "manage"]
    assert ask(server, everything)["may"] == ["infer", "manage", "admin"]
    assert ask(server, infer + "x")["may"] == []
