"""Who may manage adapters: the admin key if there is one, else whoever may ask for answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts

from manylora.server.api.access.guard import ApiKeySet
from manylora.server.api.access.scopes import ADMIN as ADMIN_SCOPE
from manylora.server.api.access.scopes import MANAGE, declared_scope
from manylora.server.api.app import create_app
from tests.support.adapters import write_adapter
from tests.support.admin_client import Admin
from tests.support.running_server import Running, serving, tiny_service

ANSWER = "/v1/completions"
BODY: dict[str, Any] = {"model": "tiny", "prompt": "Hi", "max_tokens": 1}
ADMIN = ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "x"})


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    service = tiny_service(
        model, tmp_path_factory.mktemp("data"), api_key=["user"], admin_api_key=["admin", "second"]
    )
    with serving(service) as running:
        yield running


def _ask(server: Running, path: str, body: dict[str, Any], key: str | None) -> tuple[int, str | None]:
    """Status and the code of the error."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with server.http() as http:
        answer = http.post(path, json=body, headers=headers)
    return answer.status_code, None if answer.is_success else answer.json()["error"]["code"]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["admin", "second"])
def test_an_admin_key_opens_everything(both: Running, key: str) -> None:
    assert _ask(both, *ADMIN, key) == (403, "source_forbidden")  # it got as far as the route
    assert _ask(both, ANSWER, BODY, key) == (200, None)


@pytest.mark.slow
def test_another_key_does_not_manage_adapters(both: Running) -> None:
    assert _ask(both, ANSWER, BODY, "user") == (200, None)
    assert _ask(both, *ADMIN, "user") == (403, "admin_key_needed")


@pytest.mark.parametrize("key", [None, "wrong", "admin2", "adm"])
def test_no_key(both: Running, key: str | None) -> None:
    assert _ask(both, *ADMIN, key) == (401, "invalid_api_key")
    assert _ask(both, ANSWER, BODY, key) == (401, "invalid_api_key")


@pytest.mark.slow
def test_with_only_an_admin_key_answers_are_open(tmp_path: Path, model: Path) -> None:
    with serving(tiny_service(model, tmp_path, admin_api_key=["admin"])) as running:
        assert _ask(running, ANSWER, BODY, None) == (200, None)
        assert _ask(running, ANSWER, BODY, "anything") == (200, None)
        assert _ask(running, *ADMIN, None) == (401, "invalid_api_key")
        assert _ask(running, *ADMIN, "admin") == (403, "source_forbidden")


def test_routes_of_adapters_carry_the_tag(both: Running) -> None:
    """A new route either needs an admin key or is not about adapters."""
    app = create_app(both.service)
    paths = app.openapi()["paths"]
    assert {"/v1/adapters", "/v1/chat/completions"} <= set(paths)
    scopes = {
        (route.path_format, method): declared_scope(route.endpoint)
        for route in iter_route_contexts(app.routes)
        for method in route.methods or ()
    }
    for path, operations in paths.items():
        for method, operation in operations.items():
            about_adapters = set(operation["tags"]) & {"adapters", "merged copies", "exports", "tenants"}
            changes_jobs = path.startswith("/v1/fine_tuning/jobs") and method != "get"
            needs_more = scopes[path, method.upper()] in {MANAGE, ADMIN_SCOPE}
            assert (bool(about_adapters) or changes_jobs) == needs_more, path
    assert scopes["/v1/adapters/{name}/pin", "POST"] is ADMIN_SCOPE
    assert scopes["/v1/models", "GET"] is not ADMIN_SCOPE


def test_the_schema_says_that_keys_are_needed(both: Running) -> None:
    with both.http() as http:
        assert http.get("/openapi.json").json()["security"] == [{"key": []}, {"x-api-key": []}]


@pytest.mark.parametrize(("key", "sees"), [(None, set()), ("user", {"gamma"}), ("admin", {"gamma", "other"})])
def test_the_schema_names_what_the_caller_may_list(
    both: Running, model: Path, tmp_path: Path, key: str | None, sees: set[str]
) -> None:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    admin, adapter = Admin(both, "admin"), write_adapter(tmp_path / "gamma", model)
    assert admin.upload("gamma", adapter, wait="true").status_code < 300
    assert admin.ask("PUT", "/v1/aliases/other", json={"target": "gamma"}).status_code < 300
    with both.http(headers=headers) as http:
        text = http.get("/openapi.json").text
    assert {name for name in ("gamma", "other") if f'"{name}"' in text} == sees


def test_keys_are_kept_as_digests() -> None:
    keys = ApiKeySet(["secret"])
    assert "secret" not in repr(vars(keys))
    assert keys.contains("secret")
    assert not keys.contains("")
    assert not ApiKeySet([])
    assert not ApiKeySet([]).contains("")
