"""Aliases over HTTP: one target or a split, sticky by user, and named by what answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.adapters import write_adapter
from tests.support.admin_client import Admin, error_of
from tests.support.running_server import Running, serving, tiny_service

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, model: Path, adapters: Path) -> Iterator[Running]:
    """A server with two adapters, of which one has two revisions."""
    service = tiny_service(model, tmp_path_factory.mktemp("data"))
    with serving(service) as running:
        admin = Admin(running)
        for name in ("alpha", "beta"):
            assert admin.upload(name, adapters / name, wait="true").status_code == 201
        second = write_adapter(tmp_path_factory.mktemp("second") / "alpha", model, seed=9)
        assert admin.upload("alpha", second, wait="true").status_code == 200
        yield running


@pytest.fixture
def admin(running: Running) -> Iterator[Admin]:
    admin = Admin(running)
    yield admin
    for alias in aliases(admin):
        assert admin.ask("DELETE", f"/v1/aliases/{alias['id']}").status_code == 200
    running.wait_until_idle()


def aliases(admin: Admin) -> Any:
    return admin.ask("GET", "/v1/aliases").json()["data"]


def put(admin: Admin, name: str, **body: Any) -> httpx.Response:
    return admin.ask("PUT", f"/v1/aliases/{name}", json=body)


def answered(admin: Admin, model: str, **options: Any) -> str:
    """What the answer says it came from, which its header says as well."""
    raw = admin.server.client().completions.with_raw_response.create(
        model=model, prompt="x", max_tokens=1, **options
    )
    assert raw.headers["x-manylora-model"] == raw.parse().model
    return str(raw.parse().model)


def test_one_target(admin: Admin) -> None:
    made = put(admin, "live", target="beta")
    assert made.status_code == 200
    assert made.json()["split"] == [{"target": "beta", "share": 1.0}]
    shown = admin.ask("GET", "/v1/aliases/live").json()
    assert {key: shown[key] for key in made.json()} == made.json()
    assert [alias["id"] for alias in aliases(admin)] == ["live"]
    assert answered(admin, "live").startswith("beta@")
    assert put(admin, "live", target="alpha*0.5").status_code == 200
    assert answered(admin, "live").startswith("alpha@")
    assert answered(admin, "live").endswith("*0.5")
    deleted = admin.ask("DELETE", "/v1/aliases/live")
    assert deleted.json() == {"id": "live", "object": "alias.deleted", "deleted": True}
    for method in ("GET", "DELETE"):
        assert error_of(admin.ask(method, "/v1/aliases/live")) == (404, "model_not_found", "name")
    assert error_of(admin.ask("POST", "/v1/completions", json={"model": "live", "prompt": "x"}))[0] == 404


def test_two_revisions_split_by_user(admin: Admin) -> None:
    arms = [f"alpha@{revision['revision']}" for revision in admin.get("/alpha")["revisions"]]
    split = [{"target": arms[0], "share": 3}, {"target": arms[1], "share": 1}]
    made = put(admin, "test", split=split)
    assert made.json()["split"] == [{"target": arms[0], "share": 0.75}, {"target": arms[1], "share": 0.25}]
    users = [f"user-{i}" for i in range(40)]
    first = {user: answered(admin, "test", user=user) for user in users}
    assert set(first.values()) == set(arms)
    assert Counter(first.values())[arms[0]] > 20
    assert {user: answered(admin, "test", user=user) for user in users} == first
    newer = {u: answered(admin, "test", extra_body={"safety_identifier": u}) for u in users[:10]}
    assert newer == {user: first[user] for user in users[:10]}
    assert {answered(admin, "test") for _ in range(60)} == set(arms)  # without a user: drawn each time
    with admin.server.client().chat.completions.with_streaming_response.create(
        model="test", messages=[{"role": "user", "content": "x"}], max_tokens=1, stream=True, user=users[0]
    ) as stream:
        assert stream.headers["x-manylora-model"] == first[users[0]]


def test_aliases_are_models(admin: Admin) -> None:
    put(admin, "live", target="beta")
    models = {model.id: model.to_dict() for model in admin.server.client().models.list().data}
    assert list(models) == ["tiny", "alpha", "beta", "live"]
    assert models["live"]["parent"] == "tiny"
    assert models["live"]["root"] == "beta"
    assert admin.server.client().models.retrieve("live").to_dict() == models["live"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "target"),
        ({"target": "alpha", "split": [{"target": "alpha", "share": 1}]}, "target"),
        ({"target": ""}, "target"),
        ({"target": 3}, "target"),
        ({"target": "a b"}, "target"),
        ({"target": "alpha*99"}, "target"),
        ({"split": []}, "split"),
        ({"split": [{"target": "alpha"}]}, "split[0].share"),
        ({"split": [{"target": "alpha", "share": 0}]}, "split[0].share"),
        ({"split": [{"target": "alpha", "share": -1}]}, "split[0].share"),
        ({"split": [{"target": "alpha", "share": "1"}]}, "split[0].share"),
        ({"split": [{"target": "alpha*x", "share": 1}]}, "split"),
        ({"split": [{"target": "alpha", "share": 1}] * 1000}, "split"),
        ({"split": [{"target": t, "share": 1} for t in ("alpha", "beta", "alpha")]}, "split[2].target"),
        ({"target": "alpha", "sticky": True}, "sticky"),
        ({"target": "alpha", "reset": 1}, "reset"),
    ],
)
def test_bad_aliases(admin: Admin, body: dict[str, Any], param: str) -> None:
    status, _, named = error_of(put(admin, "live", **body))
    assert (status, named) == (400, param)
    assert aliases(admin) == []


def test_names_that_can_not_be_aliases(admin: Admin) -> None:
    assert error_of(put(admin, "alpha", target="beta")) == (409, "adapter_exists", "name")
    assert error_of(put(admin, "tiny", target="beta")) == (409, "adapter_exists", "name")
    assert error_of(put(admin, "a+b", target="beta"))[::2] == (400, "name")
    assert put(admin, "live", target="beta").status_code == 200
    assert error_of(put(admin, "other", target="live"))[0] == 400  # not of an alias
    assert put(admin, "live", target="alpha").status_code == 200


def test_a_missing_target(admin: Admin) -> None:
    assert error_of(put(admin, "live", target="gamma")) == (404, "model_not_found", "target")
    split = [{"target": "alpha", "share": 1}, {"target": "gamma", "share": 1}]
    assert error_of(put(admin, "live", split=split)) == (404, "model_not_found", "split")


def test_a_target_is_not_deleted_under_its_alias(admin: Admin) -> None:
    put(admin, "live", target="beta")
    refused = admin.ask("DELETE", "/beta")
    assert error_of(refused)[:2] == (409, "adapter_in_use")
    assert "live" in refused.json()["error"]["message"]


def test_an_alias_keeps_its_name_from_adapters(admin: Admin, adapters: Path) -> None:
    put(admin, "live", target="beta")
    assert error_of(admin.upload("live", adapters / "gamma", wait="true")) == (409, "adapter_exists", "name")
